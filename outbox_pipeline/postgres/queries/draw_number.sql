-- Give the next number to a batch that has none; the lock on unclaimed is held.
WITH drawn AS (
    UPDATE outbox.unclaimed SET last_cut_number = last_cut_number + 1 RETURNING last_cut_number
)
UPDATE outbox.batch SET cut_number = drawn.last_cut_number FROM drawn WHERE batch_id = :batch_id
RETURNING cut_number
