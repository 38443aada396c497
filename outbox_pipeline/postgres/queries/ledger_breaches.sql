-- Rules of the ledger that no constraint holds, as each is about several rows or tables: how often each is broken, and where.
-- Bounded: every stretch of unclaimed and of the gaps has its own probe of the batches' index, batches are those that are
-- open or were marked within a day, refused events the latest thousand.
WITH pending AS (
    SELECT unnest(positions) AS stretch FROM outbox.unclaimed
    UNION ALL
    SELECT unnest(positions) FROM outbox.gap
),
looked_at AS (
    SELECT * FROM outbox.batch WHERE status <> 'processed'
    UNION ALL
    SELECT * FROM outbox.batch WHERE status = 'processed' AND processed_at > now() - interval '1 day'
),
recent AS MATERIALIZED (
    SELECT batch_id, event_count - coalesce(rejected_count, 0) AS expected_count, coalesce(rejected_count, 0) AS rejected_count,
           CASE WHEN status = 'processed' THEN accepted_count END AS accepted_count,
           (SELECT coalesce(sum(upper(stretch) - lower(stretch)), 0) FROM unnest(positions) AS stretch) AS position_count
    FROM looked_at
    WHERE foreign_positions = '{}'
),
refused AS MATERIALIZED (
    SELECT coalesce(range_agg(int8range(position, position + 1)), '{}') AS positions
    FROM (SELECT position, status FROM outbox.quarantined_event ORDER BY quarantine_id DESC LIMIT 1000) AS latest
    WHERE status <> 'requeued'
),
guard (name) AS (
    VALUES ('event_is_never_updated'), ('event_is_never_truncated'), ('event_is_deleted_only_when_processed')
),
breach (rule, place) AS (
    SELECT 'pending_and_in_a_batch', claimed.batch_id::text
    FROM (SELECT stretch FROM pending LIMIT 10000) AS looked
    CROSS JOIN LATERAL (SELECT batch_id FROM outbox.batch WHERE positions && stretch LIMIT 1) AS claimed
    UNION ALL
    SELECT 'unclaimed_and_in_a_gap', gap_id::text
    FROM outbox.gap JOIN outbox.unclaimed ON gap.positions && unclaimed.positions
    UNION ALL
    SELECT 'new_events_unseen', 'outbox.unclaimed' FROM outbox.unclaimed WHERE NOT upper_inf(positions)
    UNION ALL
    SELECT 'counts_differ', batch_id::text
    FROM recent
    WHERE position_count <> expected_count OR accepted_count <> position_count
    UNION ALL
    SELECT 'refused_events_missing', batch_id::text
    FROM recent
    WHERE rejected_count <> (SELECT count(*) FROM outbox.quarantined_event AS quarantined
                             WHERE quarantined.batch_id = recent.batch_id)
    UNION ALL
    SELECT 'refused_and_delivered', lower(stretch)::text
    FROM refused
    CROSS JOIN (SELECT positions FROM outbox.unclaimed UNION ALL SELECT positions FROM outbox.gap) AS place
    CROSS JOIN LATERAL unnest(refused.positions * place.positions) AS stretch
    UNION ALL
    SELECT 'refused_and_delivered', lower(stretch)::text
    FROM refused
    CROSS JOIN LATERAL unnest(refused.positions) AS stretch
    CROSS JOIN LATERAL (SELECT FROM outbox.batch WHERE batch.positions && stretch LIMIT 1) AS claimed
    UNION ALL
    SELECT 'guard_missing', guard.name
    FROM guard
    WHERE NOT EXISTS (SELECT FROM pg_trigger
                      WHERE tgrelid = 'outbox.event'::regclass AND tgname = guard.name AND tgenabled IN ('O', 'A'))
    UNION ALL
    SELECT 'guard_missing', 'batch_positions_belong_to_one_batch'
    WHERE NOT EXISTS (SELECT FROM pg_constraint
                      WHERE conrelid = 'outbox.batch'::regclass AND conname = 'batch_positions_belong_to_one_batch')
)
SELECT rule, count(*) AS breach_count, min(place) AS example FROM breach GROUP BY rule ORDER BY rule
