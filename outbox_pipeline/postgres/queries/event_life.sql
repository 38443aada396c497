-- One event's life as the ledger knows it. Times of the event itself travel as text: infinity and BC have no datetime.
SELECT event.position, event.event_type, event.environment, event.recorded_at, event.published_by,
       event.event_date_time::text AS event_date_time,
       -- Only of a time that ClickHouse can hold: of the years beyond, microseconds are more than a bigint.
       CASE WHEN event.event_date_time >= '0001-01-01 00:00:00+00' AND event.event_date_time < '10000-01-01 00:00:00+00'
           THEN (extract(epoch FROM event.event_date_time) * 1000000)::bigint END AS event_micros,
       place.status, batch.batch_id, batch.status AS batch_status, batch.attempt, batch.generation, batch.run_id,
       batch.processed_at, batch.last_error, coalesce(place.reasons, '{}') AS reasons,
       (SELECT batch_id FROM outbox.delivered_elsewhere WHERE delivered_elsewhere.event_id = event.event_id) AS elsewhere,
       EXISTS (SELECT FROM outbox.unclaimed WHERE positions @> event.position) AS is_unclaimed,
       (SELECT gap_id FROM outbox.gap WHERE positions @> event.position LIMIT 1) AS gap_id
FROM outbox.event
JOIN outbox.event_status AS place USING (position)
LEFT JOIN outbox.batch ON batch.batch_id = place.batch_id
WHERE event.event_id = :event_id
