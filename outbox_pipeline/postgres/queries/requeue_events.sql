-- Held events are requeued: their positions are unclaimed again and the next cut takes them like any other.
WITH requeued AS (
    UPDATE outbox.quarantined_event
    SET status = 'requeued', resolved_at = clock_timestamp()
    WHERE quarantine_id = ANY (CAST(:quarantine_ids AS bigint[])) AND status = 'held'
    RETURNING position
)
UPDATE outbox.unclaimed
SET positions = unclaimed.positions
              + coalesce((SELECT range_agg(int8range(position, position + 1)) FROM requeued), '{}'::int8multirange)
RETURNING (SELECT count(*) FROM requeued)
