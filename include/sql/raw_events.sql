-- A day of what the doors wrote down (web/events.py), a line an event. A line that isn't one has no time or no kind.
--
-- $files: the day's journals
CREATE TEMP TABLE raw AS
SELECT t, kind, send_id, contact_id, agent, filename
FROM read_json($files, format = 'newline_delimited', ignore_errors = true, filename = true, columns = {
         't': 'DOUBLE', 'kind': 'VARCHAR', 'send_id': 'BIGINT', 'contact_id': 'BIGINT', 'agent': 'VARCHAR'})
