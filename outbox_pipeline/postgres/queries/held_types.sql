-- What outbox.event still holds of these batches, by type; late are events recorded after their batch was cut: the
-- sequence went back, and they hide at positions of a batch that is done.
SELECT batch.batch_id, event.event_type, count(*)::integer AS event_count, sum(event.position) AS position_sum,
       (count(*) FILTER (WHERE event.recorded_at > batch.cut_at))::integer AS late_count
FROM outbox.batch
CROSS JOIN LATERAL unnest(batch.positions) AS stretch
CROSS JOIN LATERAL (
    SELECT position, event_type, recorded_at FROM outbox.event
    WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
    OFFSET 0
) AS event
WHERE batch.batch_id = ANY (CAST(:batch_ids AS uuid[]))
GROUP BY batch.batch_id, event.event_type
