-- Whose the log is: two rows for each claim of a ledger to it, and one for its end.

CREATE TABLE IF NOT EXISTS {sources:Identifier} (
    source LowCardinality(String) COMMENT 'The outbox whose events these are among those of the event log; empty where it is the only one',
    ledger_id UUID COMMENT 'The ledger that claims the source: outbox.unclaimed.ledger_id in its PostgreSQL',
    label String COMMENT 'For people: the database from which it was claimed',
    registered_at DateTime64(6, 'UTC') COMMENT 'When it was claimed; with the ledger what names a claim',
    retired_at Nullable(DateTime64(6, 'UTC'))
        COMMENT 'NULL in the rows that make a claim, one until it may be relied on, then two; the row that ends it has the time here'
) ENGINE = MergeTree
ORDER BY (source, registered_at)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Who may write into the event log. The owner: SELECT ledger_id FROM … WHERE source = '''' GROUP BY ledger_id, registered_at HAVING count(retired_at) = 0';
