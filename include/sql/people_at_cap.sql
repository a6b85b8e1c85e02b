-- Who has reached the frequency cap: handed over since its day, or frozen by others and still open (docs/decisions/0304).
-- Ordered by shard of the snapshot that is being made, so that a look-up for one shard reads only its part.
--
-- Tables: counted (file, folder, number, open_from: first row that may still be sent), outcome (final_rows.sql)
-- $files: the counted shards; $shards: how many the new snapshot has; $handed_over: outcomes that count;
-- $since: Unix ms; $messages: the cap
CREATE TABLE at_cap AS
SELECT address_hash, CAST('0x' || substr(hex(address_hash), 1, 8) AS UINTEGER) % $shards AS shard
FROM read_parquet($files, file_row_number = true, filename = true) AS frozen
JOIN counted ON counted.file = frozen.filename
LEFT JOIN outcome ON outcome.folder = counted.folder AND outcome.number = counted.number
    AND outcome.row = frozen.file_row_number
WHERE CASE WHEN outcome.outcome IS NULL THEN frozen.file_row_number < counted.open_from
           ELSE outcome.outcome IN (SELECT unnest($handed_over)) AND outcome.t >= $since END
GROUP BY address_hash
HAVING count(*) >= $messages
ORDER BY shard
