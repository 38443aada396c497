-- Delete the oldest discarded and replaced events from the outbox, and keep with each that it was pruned.
WITH doomed AS MATERIALIZED (
    SELECT quarantine_id, position FROM outbox.quarantined_event
    WHERE status IN ('discarded', 'replaced') AND pruned_at IS NULL
        AND resolved_at < least(clock_timestamp(), CAST(:now AS timestamptz)) - make_interval(days => :days)
    ORDER BY resolved_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
),
deleted AS (
    DELETE FROM outbox.event
    WHERE event.ctid = ANY (ARRAY(
        SELECT place.ctid FROM doomed
        CROSS JOIN LATERAL (
            SELECT event.ctid FROM outbox.event WHERE event.position = doomed.position OFFSET 0
        ) AS place
    ))
    RETURNING position
),
noted AS (
    UPDATE outbox.quarantined_event SET pruned_at = clock_timestamp()
    FROM doomed WHERE quarantined_event.quarantine_id = doomed.quarantine_id
    RETURNING doomed.quarantine_id
)
SELECT (SELECT count(*) FROM noted)::integer AS discarded_count, (SELECT count(*) FROM deleted)::integer AS event_count
