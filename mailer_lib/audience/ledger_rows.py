"""Final records of settled ledgers as rows, for DuckDB. ``audience`` may not import the agent, which writes them."""

# (folder of the snapshot, number of the shard, row, outcome, Unix ms). Final records only (docs/architecture.md,
# "Ledger"); the name of a ledger says whose shard it is. $ledgers: paths.
FINAL_ROWS = r"""
SELECT regexp_extract(filename, '^(.*)/ledgers/', 1) AS folder,
       CAST(regexp_extract(filename, '/([0-9]+)\.p[0-9]+\.e[0-9]+\.ledger$', 1) AS INTEGER) AS number,
       CAST(place AS BIGINT) AS row, outcome, CAST(t AS BIGINT) AS t
FROM read_csv($ledgers, delim = '\t', header = false, quote = '', escape = '', auto_detect = false, null_padding = true,
              filename = true, columns = {
                  'kind': 'VARCHAR', 'place': 'VARCHAR', 'outcome': 'VARCHAR', 'code': 'VARCHAR', 'enhanced': 'VARCHAR',
                  'queue_id': 'VARCHAR', 'conn': 'VARCHAR', 'variant': 'VARCHAR', 'provider': 'VARCHAR', 't': 'VARCHAR',
                  'text': 'VARCHAR', 'crc': 'VARCHAR'})
WHERE kind = 'O'
"""
