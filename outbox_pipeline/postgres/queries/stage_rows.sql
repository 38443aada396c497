-- Keep rows that ClickHouse shows, each with whether the same event stands at the same position here. Returns some that do not.
WITH staged AS (
    INSERT INTO pg_temp.shown_row (batch_id, position, is_ours)
    SELECT :batch_id, shown.position, event.position IS NOT NULL
    FROM unnest(CAST(:positions AS bigint[]), CAST(:event_ids AS uuid[])) AS shown (position, event_id)
    LEFT JOIN outbox.event ON event.position = shown.position AND event.event_id = shown.event_id
    RETURNING position, is_ours
)
SELECT shown.position, shown.event_id
FROM unnest(CAST(:positions AS bigint[]), CAST(:event_ids AS uuid[])) AS shown (position, event_id)
JOIN staged ON staged.position = shown.position AND NOT staged.is_ours
ORDER BY shown.position
LIMIT :limit
