"""A frozen recipient and the files that hold them: what audience writes, and message and agent read."""
