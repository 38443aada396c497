-- The proof holds: the batch's accepted events are processed, its rejected ones are held in quarantine and leave its positions.
WITH held AS (
    SELECT mine.batch_id, refused.key::bigint AS position, ARRAY(SELECT jsonb_array_elements_text(refused.value)) AS reasons
    FROM outbox.batch AS mine, jsonb_each(mine.rejected) AS refused
    WHERE mine.batch_id = :batch_id AND mine.attempt = :attempt AND mine.holder = :holder AND mine.status = 'delivering'
),
marked AS (
    UPDATE outbox.batch
    SET status = 'processed',
        positions = batch.positions - coalesce(
            (SELECT range_agg(int8range(position, position + 1)) FROM held), '{}'::int8multirange),
        accepted_count = (batch.proof ->> 'row_count')::integer,
        rejected_count = coalesce(batch.rejected_count, 0) + (SELECT count(*) FROM held),
        rejected = '{}',
        holder = NULL, lease_until = NULL, next_attempt_at = NULL, lasting = NULL,
        failures = 0, transient_failures = 0, last_error = NULL, last_error_kind = NULL,
        answered_generation = NULL, may_resend = false,
        processed_at = clock_timestamp(), proved_at = clock_timestamp()
    WHERE batch_id = :batch_id AND attempt = :attempt AND holder = :holder AND status = 'delivering'
        AND proof IS NOT NULL
    RETURNING batch_id, accepted_count, rejected_count, processed_at
),
quarantined AS (
    INSERT INTO outbox.quarantined_event (position, event_id, event_type, batch_id, reasons)
    SELECT held.position, event.event_id, event.event_type, held.batch_id, held.reasons
    FROM held JOIN outbox.event USING (position)
    RETURNING position
)
SELECT accepted_count, rejected_count, processed_at,
       (SELECT count(*) FROM quarantined)::integer AS quarantined_count,
       (SELECT count(*) FROM held)::integer AS held_count
FROM marked
