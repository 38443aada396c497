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
    SELECT batch_id, status, started_at, failures, transient_failures, trouble_since,
           status IN ('requested', 'delivering') AND lease_until <= clock_timestamp() AS went_silent
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
-- A request that no run took up says nothing of the batch, nor does an attempt during which PostgreSQL was restarted.
told_apart AS (
    SELECT *, went_silent AND (status = 'requested' OR pg_postmaster_start_time() > started_at) AS is_trouble FROM due
),
counted AS (
    SELECT batch_id, went_silent, is_trouble,
           failures + (went_silent AND NOT is_trouble)::integer AS failures,
           transient_failures + is_trouble::integer AS transient_failures,
           -- A beginning in the future was written under another clock.
           CASE WHEN NOT is_trouble THEN trouble_since
                ELSE least(CASE WHEN transient_failures > 0 THEN trouble_since END, clock_timestamp())
           END AS trouble_since
    FROM told_apart
),
judged AS (
    SELECT *, failures >= :max_attempts OR (
               is_trouble AND transient_failures >= :max_attempts
               AND trouble_since <= clock_timestamp() - CAST(:trouble_lasts AS interval)) AS is_enough
    FROM counted
)
UPDATE outbox.batch
SET status = CASE WHEN judged.is_enough THEN 'parked' ELSE 'requested' END,
    -- The attempt that splits a batch is far above all that another instance of the ledger draws for the same batch.
    attempt = batch.attempt + CASE
        WHEN judged.is_enough THEN 0
        WHEN batch.memory_failures >= :memory_failures AND batch.processed_at IS NULL AND batch.attempt < :split_attempts
        THEN :split_attempts + 1 ELSE 1 END,
    failures = judged.failures,
    transient_failures = judged.transient_failures,
    trouble_since = judged.trouble_since,
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
