-- A batch's events, each stretch of positions by its own probe of the primary key. OFFSET 0 keeps it that way: flattened
-- into a join, the planner may read the whole table. Sorting 200,000 wide rows here would spill to disk, so the reader does.
-- The batch id comes from the session, because ADBC streams a statement without parameters by COPY.
SELECT event.position, uuid_send(event.event_id) AS event_id, event.event_type, event.event_date_time, event.environment,
       event.event_context, event.metadata_version, event.recorded_at, event.trace_context
FROM outbox.batch
CROSS JOIN LATERAL unnest(batch.positions) AS stretch
CROSS JOIN LATERAL (
    SELECT * FROM outbox.event
    WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
    ORDER BY event.position
    OFFSET 0
) AS event
WHERE batch.batch_id = current_setting('outbox.batch_id')::uuid
