"""Benchmarks: each prints figures beside a peer or a limit measured in the same run, and fails when a bar is missed."""
