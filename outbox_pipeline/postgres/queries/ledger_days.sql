-- What the ledger says of each UTC day: batches by what became of them, and events still held in quarantine.
SELECT batch.recorded_on AS day,
       count(*) FILTER (WHERE status = 'processed' AND former_positions IS NULL)::integer AS batches,
       coalesce(sum(accepted_count) FILTER (WHERE status = 'processed'), 0)::bigint AS expected_rows,
       count(*) FILTER (WHERE pruned_at IS NOT NULL AND former_positions IS NULL)::integer AS pruned_batches,
       count(*) FILTER (WHERE status NOT IN ('processed', 'parked'))::integer AS open_batches,
       count(*) FILTER (WHERE status = 'parked')::integer AS parked_batches,
       coalesce(sum(held.event_count), 0)::bigint AS held_events
FROM outbox.batch
LEFT JOIN (
    SELECT batch_id, count(*) AS event_count FROM outbox.quarantined_event WHERE status = 'held' GROUP BY batch_id
) AS held USING (batch_id)
WHERE batch.recorded_on BETWEEN :first_day AND :last_day
GROUP BY batch.recorded_on
ORDER BY batch.recorded_on
