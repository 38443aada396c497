-- Those of the batches that hold an event of a type; the first one found is enough.
SELECT batch.batch_id
FROM outbox.batch
WHERE batch.batch_id = ANY (CAST(:batch_ids AS uuid[])) AND EXISTS (
    SELECT
    FROM unnest(batch.positions) AS stretch
    CROSS JOIN LATERAL (
        SELECT event_type FROM outbox.event
        WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
        OFFSET 0
    ) AS event
    WHERE event.event_type = :event_type
)
