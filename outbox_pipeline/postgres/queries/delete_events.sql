-- Delete the events of one batch. Each stretch of positions has its own probe of the primary key, kept apart by OFFSET 0, and
-- the rows are then taken by their place in the table: a join back to it may read the whole table.
DELETE FROM outbox.event
WHERE event.ctid = ANY (ARRAY(
    SELECT doomed.ctid
    FROM outbox.batch
    CROSS JOIN LATERAL unnest(batch.positions) AS stretch
    CROSS JOIN LATERAL (
        SELECT event.ctid FROM outbox.event
        WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
        OFFSET 0
    ) AS doomed
    WHERE batch.batch_id = :batch_id
))
