-- A batch's events in order, each stretch of positions by its own probe of the primary key.
-- The batch id comes from the session, because ADBC streams a statement without parameters by COPY.
SELECT event.position, uuid_send(event.event_id) AS event_id, event.event_type, event.event_date_time, event.environment,
       event.event_context, event.metadata_version, event.recorded_at, event.trace_context
FROM outbox.batch
CROSS JOIN LATERAL unnest(batch.positions) AS stretch
CROSS JOIN LATERAL (
    SELECT * FROM outbox.event
    WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
) AS event
WHERE batch.batch_id = current_setting('outbox.batch_id')::uuid
ORDER BY event.position
