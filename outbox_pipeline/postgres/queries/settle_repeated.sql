-- Events here that another instance delivered at another position, and that a batch here has delivered too, or is bound to
-- deliver: each stands in ClickHouse twice. They leave the list of those that are still to be held.
WITH claimed AS (
    SELECT range_agg(int8range(position, position + 1)) AS positions FROM pg_temp.repeated
),
settled AS (
    SELECT unnest(batch.positions * claimed.positions) AS stretch
    FROM outbox.batch JOIN claimed ON batch.positions && claimed.positions
    WHERE batch.proof IS NOT NULL
),
doubled AS (
    SELECT row.position
    FROM settled
    CROSS JOIN LATERAL (
        SELECT position FROM pg_temp.repeated WHERE position >= lower(stretch) AND position < upper(stretch) OFFSET 0
    ) AS row
    UNION
    SELECT position FROM pg_temp.repeated JOIN pg_temp.shown_row USING (position) WHERE shown_row.is_ours
)
DELETE FROM pg_temp.repeated USING doubled
WHERE repeated.position = doubled.position
RETURNING repeated.position, repeated.event_id
