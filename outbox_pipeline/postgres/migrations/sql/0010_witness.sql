-- Each cut has a number, under which ClickHouse keeps its batch: what a ledger that was set back no longer knows, it finds there.

ALTER TABLE outbox.unclaimed
    ADD COLUMN last_cut_number bigint NOT NULL DEFAULT 0,
    ADD COLUMN witness_floor bigint NOT NULL DEFAULT 0;

-- Batches of before, and those that a process of the release before cuts, get theirs at their next attempt.
ALTER TABLE outbox.batch ADD COLUMN cut_number bigint;

CREATE UNIQUE INDEX batch_cut_number_idx ON outbox.batch (cut_number);

COMMENT ON COLUMN outbox.unclaimed.last_cut_number IS 'The highest number that a batch of this ledger has. Grows in the transaction that gives the number, and never falls.';
COMMENT ON COLUMN outbox.unclaimed.witness_floor IS 'The number under which ClickHouse keeps that this ledger was adopted, 0 for never: numbers below it that are of other batches are of the old instance, one at or above it stops this ledger.';
COMMENT ON COLUMN outbox.batch.cut_number IS 'The number that was given with the batch id, in one transaction and before ClickHouse saw either. Null until the next attempt in batches of an earlier version, and in those that were adopted.';
