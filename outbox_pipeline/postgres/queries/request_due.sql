-- Draw the next attempt of each due batch, oldest first; a batch that went silent too often is parked instead.
-- Batches that are delivered for the first time go before those that a replay could not finish.
-- An end that is further ahead than the lease or the wait lasts was set under another clock: it is over, and no attempt
-- has been silent for it.
-- A batch whose proof only a newer release can read is that release's to deliver: it is told, and nothing counts.
WITH told AS (
    UPDATE outbox.batch SET last_error = :newer_proof, last_error_kind = 'configuration'
    WHERE batch_id IN (
        SELECT batch_id FROM outbox.batch
        WHERE status IN ('requested', 'delivering', 'failed') AND (proof ->> 'version')::integer > :proof_version
            AND coalesce(lease_until <= clock_timestamp(), true) AND last_error IS DISTINCT FROM :newer_proof
        FOR UPDATE SKIP LOCKED
    )
),
due AS (
    SELECT batch_id, status IN ('requested', 'delivering') AND lease_until <= clock_timestamp() AS went_silent
    FROM outbox.batch
    WHERE status <> 'processed' AND coalesce((proof ->> 'version')::integer, 1) <= :proof_version AND (
        status = 'cut'
        OR (status = 'failed' AND (
            next_attempt_at <= clock_timestamp() OR next_attempt_at > clock_timestamp() + lasting))
        OR (status IN ('requested', 'delivering') AND (
            lease_until <= clock_timestamp() OR lease_until > clock_timestamp() + lasting))
    )
    ORDER BY processed_at IS NOT NULL, cut_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
),
judged AS (
    SELECT batch.batch_id, due.went_silent, batch.failures + due.went_silent::integer AS failures
    FROM due JOIN outbox.batch USING (batch_id)
)
UPDATE outbox.batch
SET status = CASE WHEN judged.failures >= :max_attempts THEN 'parked' ELSE 'requested' END,
    attempt = batch.attempt + (judged.failures < :max_attempts)::integer,
    failures = judged.failures,
    holder = NULL,
    lease_until = clock_timestamp() + make_interval(secs => :request_seconds),
    lasting = make_interval(secs => :request_seconds),
    next_attempt_at = NULL,
    requested_at = clock_timestamp(),
    last_error = CASE WHEN judged.went_silent
        -- The run itself may have said on what it hung.
        AND NOT (batch.last_error_kind IS NOT DISTINCT FROM 'silence' AND starts_with(batch.last_error, format('Attempt %s ', batch.attempt)))
        THEN format('Attempt %s went silent: its run never started, was killed or lost its connection.', batch.attempt)
        ELSE batch.last_error END,
    last_error_kind = CASE WHEN judged.went_silent THEN 'silence' ELSE batch.last_error_kind END
FROM judged
WHERE batch.batch_id = judged.batch_id
RETURNING batch.batch_id, batch.attempt, batch.recorded_on, batch.event_count, batch.status, batch.cut_at
