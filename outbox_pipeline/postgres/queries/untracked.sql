-- Untracked events between two positions: not unclaimed, in no gap, in no batch, not held or discarded.
-- One statement, so one snapshot: a position that is just moving from one place to the next is seen in one of them.
WITH looked AS (
    SELECT int8range(:first_position, :last_position, '[]') AS stretch
),
place AS (
    SELECT positions FROM outbox.unclaimed
    UNION ALL
    SELECT gap.positions FROM outbox.gap, looked WHERE gap.positions && looked.stretch
    UNION ALL
    SELECT batch.positions * int8multirange(looked.stretch) FROM outbox.batch, looked
    WHERE batch.positions && looked.stretch
    UNION ALL
    SELECT int8multirange(int8range(position, position + 1)) FROM outbox.quarantined_event
    WHERE status <> 'requeued' AND position BETWEEN :first_position AND :last_position
),
unplaced AS (
    SELECT unnest(
        int8multirange(looked.stretch) - coalesce((SELECT range_agg(positions) FROM place), '{}'::int8multirange)
    ) AS stretch
    FROM looked
)
SELECT (event.recorded_at AT TIME ZONE 'UTC')::date AS day, count(*)::integer AS event_count,
       range_agg(int8range(event.position, event.position + 1))::text AS positions
FROM unplaced
CROSS JOIN LATERAL (
    SELECT position, recorded_at FROM outbox.event
    WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
    OFFSET 0
) AS event
GROUP BY day
ORDER BY day
