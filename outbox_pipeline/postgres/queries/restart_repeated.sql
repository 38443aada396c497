-- An attempt that has begun on a batch with events that another instance delivered has not looked for them: it is over, and
-- the next one, which looks, is asked for at once.
WITH held AS (
    SELECT range_agg(int8range(position, position + 1)) AS positions FROM pg_temp.repeated
)
UPDATE outbox.batch
SET attempt = attempt + 1,
    lease_until = CASE WHEN status IN ('requested', 'delivering') THEN clock_timestamp() END
FROM held
WHERE status <> 'processed' AND processed_at IS NULL AND proof IS NULL AND batch.positions && held.positions
