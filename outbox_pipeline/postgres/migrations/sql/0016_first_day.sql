-- The ledger keeps its first day, with which Dagster's partitions begin: an outbox of today has none from before it.

ALTER TABLE outbox.unclaimed ADD COLUMN begun_on date;

UPDATE outbox.unclaimed
SET begun_on = least((clock_timestamp() AT TIME ZONE 'UTC')::date, (SELECT min(recorded_on) FROM outbox.batch));

COMMENT ON COLUMN outbox.unclaimed.begun_on IS 'The ledger''s first day (UTC): that of ''outbox init'', or of its earliest batch where that is of an earlier day, as after a clock that was ahead. Never moves to a later day.';
