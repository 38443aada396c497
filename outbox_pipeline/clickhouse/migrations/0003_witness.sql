-- The witness of the ledger: a row for each attempt that was about to send something.

CREATE TABLE IF NOT EXISTS {ledger:Identifier} (
    source LowCardinality(String) COMMENT 'The outbox whose batch it is, as in the other tables',
    cut_number UInt64 COMMENT 'The number of the batch in its ledger: outbox.batch.cut_number',
    batch_id UUID COMMENT 'The batch with this number; zeros where the ledger was adopted instead, and numbers below are of the old instance',
    ledger_id UUID COMMENT 'The ledger: outbox.unclaimed.ledger_id',
    written_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the attempt was about to send'
) ENGINE = MergeTree
ORDER BY (source, cut_number)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'What a ledger that was set back no longer knows: a number with two batches, or one that the ledger does not have, stops it';
