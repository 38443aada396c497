-- Events at positions of batches that are done, or of events that were given up, which are not those events: the sequence went
-- back and drew these positions again. Suspects of a batch are of it, perhaps: its own were not deleted everywhere, or a clock
-- was set back.
-- Of a batch that has its events an own one must be gone before another can stand there, which only a copy from elsewhere or
-- a hand brings about.
INSERT INTO pg_temp.hidden (batch_id, position, event_id, is_suspect)
SELECT batch.batch_id, event.position, event.event_id, true
FROM outbox.batch
CROSS JOIN LATERAL unnest(batch.positions) AS stretch
CROSS JOIN LATERAL (
    SELECT position, event_id, recorded_at FROM outbox.event
    WHERE event.position >= lower(stretch) AND event.position < upper(stretch)
    OFFSET 0
) AS event
WHERE batch.status = 'processed' AND (batch.pruned_at IS NOT NULL OR :looks_at_all)
    AND (batch.pruned_at IS NOT NULL OR event.recorded_at > batch.cut_at)
UNION ALL
SELECT quarantine.batch_id, event.position, event.event_id, false
FROM outbox.quarantined_event AS quarantine JOIN outbox.event USING (position)
WHERE quarantine.status IN ('discarded', 'replaced') AND event.event_id <> quarantine.event_id
