-- A batch is split: its positions are unclaimed again, and what it leaves is a batch of no event that is done and pruned,
-- to every release (its number, its size and what it held stay). The lock on unclaimed is held.
-- Only what ClickHouse has never taken is given back: not a batch that was marked once, nor one with a generation that
-- was begun for another reason than a refusal.
WITH split AS (
    UPDATE outbox.batch
    SET status = 'processed', former_positions = positions, positions = '{}', split_at = clock_timestamp(),
        rejected = '{}', proof = CAST(:nothing AS jsonb), accepted_count = 0, rejected_count = 0,
        holder = NULL, lease_until = NULL, next_attempt_at = NULL, lasting = NULL, failures = 0, transient_failures = 0,
        answered_generation = NULL, may_resend = false,
        processed_at = 'epoch', proved_at = clock_timestamp(), pruned_at = clock_timestamp()
    WHERE batch_id = :batch_id AND attempt = :attempt AND holder = :holder AND status = 'delivering'
        AND processed_at IS NULL AND generation = refused_generations AND foreign_positions = '{}' AND event_count > 1
    RETURNING former_positions, event_count
)
UPDATE outbox.unclaimed
SET positions = unclaimed.positions + split.former_positions
FROM split
RETURNING split.event_count
