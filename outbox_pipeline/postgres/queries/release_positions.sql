-- Take events that the old instance delivered out of what is pending here: unclaimed, gaps, open batches,
-- quarantine, in lock order.
-- On another server the holders of gaps were transactions of the old instance: gaps lose them and the next cut settles them.
-- An attempt that is at work on a batch which loses events is over: the next one is asked for at once.
WITH owned AS (
    SELECT coalesce(range_agg(int8range(position, position + 1)), '{}'::int8multirange) AS positions
    FROM pg_temp.shown_row WHERE is_ours
),
claimed AS (
    UPDATE outbox.unclaimed SET positions = unclaimed.positions - owned.positions FROM owned
),
looked AS (
    DELETE FROM outbox.gap RETURNING positions, holders, observed_at
),
kept AS (
    INSERT INTO outbox.gap (positions, holders, observed_at)
    SELECT looked.positions - owned.positions, CASE WHEN :keep_holders THEN looked.holders ELSE '{}' END, looked.observed_at
    FROM looked CROSS JOIN owned
    WHERE NOT isempty(looked.positions - owned.positions)
    RETURNING gap_id
),
shrunk AS (
    UPDATE outbox.batch
    SET positions = batch.positions - owned.positions,
        event_count = batch.event_count - (
            SELECT sum(upper(stretch) - lower(stretch)) FROM unnest(batch.positions * owned.positions) AS stretch),
        attempt = batch.attempt + 1,
        lease_until = CASE WHEN status IN ('requested', 'delivering') THEN clock_timestamp() END
    FROM owned
    WHERE batch.proof IS NULL AND batch.positions && owned.positions AND NOT batch.positions <@ owned.positions
),
emptied AS (
    DELETE FROM outbox.batch USING owned
    WHERE batch.proof IS NULL AND batch.positions <@ owned.positions
),
resolved AS (
    UPDATE outbox.quarantined_event
    SET status = 'requeued', resolved_at = coalesce(resolved_at, clock_timestamp()), replaced_by = NULL,
        note = 'The old instance requeued and delivered it; adopted.'
    FROM owned
    WHERE status <> 'requeued' AND owned.positions @> quarantined_event.position
)
SELECT count(*) FROM kept
