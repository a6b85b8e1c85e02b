-- Who was sent a message of one phase, or bounced at the hand-over: events of behaviour.
--
-- Tables: shard_files (number, file), final (final_rows.sql)
-- $files: the shards; $campaign, $edition: names; $sent: outcomes that count as sent; $bounced: the one that is a bounce
SELECT frozen.contact_id, $campaign AS campaign, $edition AS edition,
       CASE final.outcome WHEN $bounced THEN 'bounced' ELSE 'sent' END AS kind,
       CAST(epoch_ms(final.t) AS TIMESTAMP_MS) AS happened_at, false AS machine
FROM read_parquet($files, file_row_number = true, filename = true) AS frozen
JOIN shard_files ON shard_files.file = frozen.filename
JOIN final ON final.number = shard_files.number AND final.row = frozen.file_row_number
WHERE frozen.contact_id > 0 AND (final.outcome = $bounced OR final.outcome IN (SELECT unnest($sent)))
