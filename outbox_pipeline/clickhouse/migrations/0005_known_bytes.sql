-- Where a row of known bytes goes before events do, to be read back: columns as in the log.

CREATE TABLE IF NOT EXISTS {known_bytes:Identifier} (
    event_type LowCardinality(String),
    event_date_time DateTime64(6, 'UTC'),
    environment LowCardinality(String),
    event_context String CODEC(ZSTD(1)),
    metadata_version UInt64,
    event_id UUID,
    batch_id UUID COMMENT 'Another one for each row',
    generation UInt32,
    position UInt64,
    recorded_at DateTime64(6, 'UTC'),
    trace_context String,
    loaded_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When it was inserted; a day later it is deleted',
    source LowCardinality(String) DEFAULT '' COMMENT 'The outbox that sent it; empty for the only one'
) ENGINE = MergeTree
ORDER BY (source, batch_id)
TTL toDateTime(loaded_at, 'UTC') + toIntervalDay(1)
COMMENT 'One row, always the same, from each process before its first delivery: sent as events are and read back, so that nothing is delivered where it arrives otherwise';
