-- When a batch was last proved, when its events left PostgreSQL, and how often a server in trouble held it up.

ALTER TABLE outbox.batch
    ADD COLUMN transient_failures integer NOT NULL DEFAULT 0 CHECK (transient_failures >= 0),
    ADD COLUMN proved_at timestamptz,
    ADD COLUMN pruned_at timestamptz;

UPDATE outbox.batch SET proved_at = processed_at WHERE status = 'processed';

ALTER TABLE outbox.batch
    ADD CONSTRAINT batch_is_proved_when_processed CHECK (status <> 'processed' OR proved_at IS NOT NULL);

CREATE INDEX batch_retried ON outbox.batch (processed_at) WHERE status = 'processed' AND attempt > 1;

COMMENT ON COLUMN outbox.batch.transient_failures IS 'Attempts since the last success or resume that ended because a server was in trouble; ten times the limit of failures parks the batch.';
COMMENT ON COLUMN outbox.batch.proved_at IS 'When ClickHouse last showed exactly this batch''s rows: at first when it is marked, later each time it is proved again.';
COMMENT ON COLUMN outbox.batch.pruned_at IS 'When its events were deleted from outbox.event; from then on it can be proved but not sent again. Final.';
