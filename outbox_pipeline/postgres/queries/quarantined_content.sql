-- One event with its context, for a person who asked for it. The context and the event's time travel as text: json would
-- be parsed and written again, and infinity and BC have no datetime.
SELECT event.event_id, event.position, event.event_type, event.environment, event.event_date_time::text AS event_date_time,
       event.recorded_at, event.published_by, event.metadata_version, event.context_bytes, event.event_context::text AS context,
       place.status, batch.batch_id, batch.status AS batch_status
FROM outbox.event
JOIN outbox.event_status AS place USING (position)
LEFT JOIN outbox.batch ON batch.batch_id = place.batch_id
WHERE event.event_id = :event_id
