-- What people did with the messages of a send, each kind once a message. Machines count only where they leave: a click of
-- theirs on the one-click address is the person's provider acting for them.
--
-- $files: raw events; $send_id
SELECT DISTINCT CASE kind WHEN 'view' THEN 'open' ELSE kind END AS kind, message_key
FROM read_json($files, format = 'newline_delimited', ignore_errors = true, columns = {
         'kind': 'VARCHAR', 'send_id': 'BIGINT', 'message_key': 'VARCHAR', 'agent': 'VARCHAR'})
WHERE send_id = $send_id AND kind IN ('open', 'view', 'click', 'unsubscribe')
      AND (kind = 'unsubscribe' OR coalesce(agent NOT IN ('proxy', 'bot'), true))
