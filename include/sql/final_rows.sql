-- What became of each row of settled ledgers: its final record, but where a row was amended the last amendment
-- (docs/architecture.md, "Ledger"). The name of a ledger says whose shard it is.
--
-- $ledgers: their paths
-- Answer: folder of the snapshot, number of the shard, row, outcome, t (Unix ms)
WITH line AS (
    SELECT filename, kind, CAST(place AS BIGINT) AS row, outcome, CAST(t AS BIGINT) AS t
    FROM read_csv($ledgers, delim = '\t', header = false, quote = '', escape = '', auto_detect = false,
                  null_padding = true, filename = true, columns = {
                      'kind': 'VARCHAR', 'place': 'VARCHAR', 'outcome': 'VARCHAR', 'code': 'VARCHAR',
                      'enhanced': 'VARCHAR', 'queue_id': 'VARCHAR', 'conn': 'VARCHAR', 'variant': 'VARCHAR',
                      'provider': 'VARCHAR', 't': 'VARCHAR', 'text': 'VARCHAR', 'crc': 'VARCHAR'})
    WHERE kind IN ('O', 'A')
), amended AS (
    SELECT filename, row, arg_max(outcome, t) AS outcome, max(t) AS t FROM line WHERE kind = 'A' GROUP BY filename, row
), told AS (
    SELECT filename, row, outcome, t FROM line ANTI JOIN amended USING (filename, row) WHERE kind = 'O'
    UNION ALL SELECT filename, row, outcome, t FROM amended
)
SELECT regexp_extract(filename, '^(.*)/ledgers/', 1) AS folder,
       CAST(regexp_extract(filename, '/([0-9]+)\.p[0-9]+\.e[0-9]+\.ledger$', 1) AS INTEGER) AS number,
       row, outcome, t
FROM told
