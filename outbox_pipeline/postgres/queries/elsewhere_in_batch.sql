-- Those events of a batch that another instance of the ledger delivered, each with the batch and position that it has there.
SELECT event.position, delivered_elsewhere.event_id, delivered_elsewhere.batch_id,
       delivered_elsewhere.position AS there
FROM outbox.batch
CROSS JOIN LATERAL unnest(batch.positions) AS stretch
CROSS JOIN LATERAL (
    SELECT position, event_id FROM outbox.event
    WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
    OFFSET 0
) AS event
JOIN outbox.delivered_elsewhere USING (event_id)
WHERE batch.batch_id = :batch_id
ORDER BY event.position
