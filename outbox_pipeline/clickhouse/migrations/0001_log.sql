-- The log with its fence, and how far each day is delivered.
-- A table is named by its role, as in {table:Identifier}; the name itself is filled in when the statement runs.

CREATE TABLE IF NOT EXISTS {table:Identifier} (
    event_type LowCardinality(String) COMMENT 'What happened',
    event_date_time DateTime64(6, 'UTC') COMMENT 'When it happened, as the application said',
    environment LowCardinality(String) COMMENT 'Where it happened: production, staging, …',
    event_context String COMMENT 'The event itself: the JSON text exactly as published' CODEC(ZSTD(1)),
    metadata_version UInt64 COMMENT 'Version of the context''s shape',
    event_id UUID COMMENT 'Identity of the event',
    batch_id UUID COMMENT 'The batch that brought it' CODEC(ZSTD(1)),
    generation UInt32 COMMENT 'Which sending of that batch' CODEC(ZSTD(1)),
    position UInt64 COMMENT 'Position in the outbox' CODEC(Delta, ZSTD(1)),
    recorded_at DateTime64(6, 'UTC') COMMENT 'When PostgreSQL stored it' CODEC(Delta, ZSTD(1)),
    trace_context String COMMENT 'W3C trace context of the publisher, when there was one' CODEC(ZSTD(1)),
    loaded_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When this row was inserted here' CODEC(ZSTD(1)),
    source LowCardinality(String) DEFAULT '' COMMENT 'The outbox it is from; empty for the only one',
    INDEX position_range position TYPE minmax GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY toYYYYMM(event_date_time)
ORDER BY (source, event_type, event_date_time, event_id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {fence:Identifier} (
    batch_id UUID COMMENT 'The batch',
    attempt UInt32 COMMENT 'Inserts of lower attempts on this batch are refused from now on',
    fenced_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When this attempt began',
    source LowCardinality(String) DEFAULT '' COMMENT 'The outbox of the batch; empty for the only one'
) ENGINE = MergeTree
ORDER BY (source, batch_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {completeness:Identifier} (
    day Date COMMENT 'UTC day on which PostgreSQL stored the events; the Dagster partition',
    complete_through DateTime64(6, 'UTC')
        COMMENT 'Every committed event of the day recorded before this is in the event log or counted as quarantined',
    event_count UInt64 COMMENT 'Events of the day that were proved to be in the event log',
    batch_count UInt64 COMMENT 'Batches that brought them',
    undelivered_count UInt64 COMMENT 'Committed events of the day seen on their way',
    quarantined_count UInt64 COMMENT 'Events refused by validation and held',
    discarded_count UInt64 COMMENT 'Refused events that were given up',
    replaced_count UInt64 COMMENT 'Refused events in whose place a corrected one was published',
    id_sum UInt64 COMMENT 'Sum of the hashes of the ids, modulo 2^64',
    position_sum UInt64 COMMENT 'sum(position), modulo 2^64',
    context_sum UInt64 COMMENT 'sum(toUInt64(CRC32(event_context)))',
    written_at DateTime64(6, 'UTC') COMMENT 'The time in PostgreSQL of which all this is true',
    source LowCardinality(String) DEFAULT '' COMMENT 'The outbox of which this is told; empty for the only one'
) ENGINE = ReplacingMergeTree(written_at)
ORDER BY (source, day);
