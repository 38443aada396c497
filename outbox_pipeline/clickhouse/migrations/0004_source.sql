-- Whose each row is, where several outboxes share a log, and the view that analysts read.
-- Older tables get the column and keep their keys: ClickHouse can change none.

ALTER TABLE {table:Identifier}
    ADD COLUMN IF NOT EXISTS source LowCardinality(String) DEFAULT '' COMMENT 'The outbox it is from; empty for the only one';

ALTER TABLE {fence:Identifier}
    ADD COLUMN IF NOT EXISTS source LowCardinality(String) DEFAULT '' COMMENT 'The outbox of the batch; empty for the only one';

ALTER TABLE {completeness:Identifier}
    ADD COLUMN IF NOT EXISTS source LowCardinality(String) DEFAULT '' COMMENT 'The outbox of which this is told; empty for the only one';

CREATE OR REPLACE VIEW {delivered:Identifier} AS
SELECT
    day,
    complete_through,
    event_count,
    batch_count,
    undelivered_count,
    quarantined_count,
    discarded_count,
    replaced_count,
    id_sum,
    position_sum,
    context_sum,
    written_at,
    complete_through >= toDateTime64(toDate32(day) + 1, 6, 'UTC') AS is_complete,
    source
FROM {completeness:Identifier} FINAL;
