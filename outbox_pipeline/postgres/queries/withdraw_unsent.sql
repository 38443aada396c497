-- Batches that were frozen here and of which nothing was sent, though the old instance delivered events of theirs: what
-- was frozen is taken back, so that these events can leave them or be held. No row of the generation before counts any more.
WITH claimed AS (
    SELECT range_agg(int8range(position, position + 1)) AS positions
    FROM (
        SELECT position FROM pg_temp.shown_row WHERE is_ours
        UNION ALL
        SELECT position FROM pg_temp.repeated
    ) AS delivered
)
UPDATE outbox.batch
SET rejected = NULL, proof = NULL, generation = generation + 1
FROM claimed
WHERE status <> 'processed' AND processed_at IS NULL AND proof IS NOT NULL
    AND batch.positions && claimed.positions
    AND NOT batch_id = ANY (CAST(:sent AS uuid[]))
RETURNING batch_id, attempt + 1 AS attempt
