-- An event that a batch here has delivered, or is bound to deliver, is not another batch's as well. Returns those that seemed so.
-- Looked up by sets: asking each batch for each position would unpack its set every time.
WITH claimed AS (
    SELECT range_agg(int8range(position, position + 1)) AS positions FROM pg_temp.shown_row WHERE is_ours
),
settled AS (
    SELECT unnest(batch.positions * claimed.positions) AS stretch
    FROM outbox.batch JOIN claimed ON batch.positions && claimed.positions
    WHERE batch.proof IS NOT NULL
),
doubled AS (
    SELECT row.batch_id, row.position
    FROM settled
    CROSS JOIN LATERAL (
        SELECT batch_id, position FROM pg_temp.shown_row
        WHERE position >= lower(stretch) AND position < upper(stretch) AND is_ours
        OFFSET 0
    ) AS row
    UNION
    SELECT later.batch_id, later.position
    FROM pg_temp.shown_row AS later JOIN pg_temp.shown_row AS earlier USING (position)
    WHERE later.is_ours AND earlier.is_ours AND earlier.batch_id < later.batch_id
),
disowned AS (
    UPDATE pg_temp.shown_row SET is_ours = false
    FROM doubled
    WHERE shown_row.batch_id = doubled.batch_id AND shown_row.position = doubled.position
)
SELECT doubled.position, event.event_id
FROM doubled JOIN outbox.event USING (position)
ORDER BY doubled.position
