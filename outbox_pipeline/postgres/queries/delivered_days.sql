-- What each UTC day's events have come to, in one snapshot: delivered, undelivered, quarantined, and complete through when.
-- :watermark was taken before this statement, so a transaction that is not seen here records later than it.
-- An undelivered event that was recorded after the end of the day it counts for (a clock that was ahead) keeps the day open.
-- Positions and recorded_at are drawn together, so what lies beyond :limit pending events was recorded after the oldest.
WITH stretch AS (
    SELECT unnest(positions) AS positions FROM outbox.gap
    UNION ALL
    SELECT unnest(positions) FROM outbox.unclaimed
),
pending AS MATERIALIZED (
    SELECT event.recorded_at,
           greatest(CAST(:first_day AS date), least(
               (event.recorded_at AT TIME ZONE 'UTC')::date, (clock_timestamp() AT TIME ZONE 'UTC')::date
           )) AS recorded_on
    FROM stretch
    CROSS JOIN LATERAL (
        SELECT position, recorded_at
        FROM outbox.event
        WHERE position >= lower(stretch.positions)
            AND position < coalesce(upper(stretch.positions), 9223372036854775807)
        ORDER BY position
        LIMIT :limit
    ) AS event
    ORDER BY event.position
    LIMIT :limit
),
bound AS (
    SELECT CASE WHEN count(*) < :limit THEN CAST(:watermark AS timestamptz)
                ELSE least(CAST(:watermark AS timestamptz), min(recorded_at)) END AS complete_through
    FROM pending
),
undelivered AS (
    SELECT recorded_on, sum(event_count)::bigint AS event_count, min(oldest_at) AS oldest_at
    FROM (
        SELECT recorded_on, count(*) AS event_count, min(recorded_at) AS oldest_at FROM pending GROUP BY recorded_on
        UNION ALL
        SELECT recorded_on, event_count - coalesce(rejected_count, 0), oldest_recorded_at
        FROM outbox.batch WHERE status <> 'processed'
    ) AS place
    GROUP BY recorded_on
),
wanted AS (
    SELECT day::date AS day
    FROM generate_series(
        least(coalesce(CAST(:from_day AS date), (SELECT min(recorded_on) FROM outbox.batch),
                       (SELECT min(recorded_on) FROM pending)), CAST(:until_day AS date)),
        CAST(:until_day AS date), interval '1 day') AS day
    UNION
    SELECT unnest(CAST(:days AS date[]))
    UNION
    SELECT recorded_on FROM undelivered
    UNION
    SELECT recorded_on FROM outbox.batch WHERE processed_at >= CAST(:since AS timestamptz)
    UNION
    SELECT batch.recorded_on
    FROM outbox.quarantined_event JOIN outbox.batch USING (batch_id)
    WHERE resolved_at >= CAST(:since AS timestamptz)
),
delivered AS (
    SELECT recorded_on, count(*) AS batch_count, sum(accepted_count) AS event_count,
           mod(sum((proof ->> 'id_sum')::numeric), 18446744073709551616) AS id_sum,
           mod(sum((proof ->> 'position_sum')::numeric), 18446744073709551616) AS position_sum,
           mod(sum((proof ->> 'context_sum')::numeric), 18446744073709551616) AS context_sum
    FROM outbox.batch
    WHERE status = 'processed' AND former_positions IS NULL AND recorded_on IN (SELECT day FROM wanted)
    GROUP BY recorded_on
),
quarantined AS (
    SELECT batch.recorded_on,
           count(*) FILTER (WHERE quarantined_event.status = 'held') AS held,
           count(*) FILTER (WHERE quarantined_event.status = 'discarded') AS discarded,
           count(*) FILTER (WHERE quarantined_event.status = 'replaced') AS replaced
    FROM outbox.quarantined_event JOIN outbox.batch USING (batch_id)
    WHERE quarantined_event.status <> 'requeued' AND batch.recorded_on IN (SELECT day FROM wanted)
    GROUP BY batch.recorded_on
)
SELECT wanted.day,
       least(
           (wanted.day + 1)::timestamp AT TIME ZONE 'UTC'
               - CASE WHEN undelivered.recorded_on IS NULL THEN interval '0' ELSE interval '1 microsecond' END,
           bound.complete_through,
           undelivered.oldest_at
       ) AS complete_through,
       coalesce(delivered.event_count, 0)::bigint AS event_count,
       coalesce(delivered.batch_count, 0)::bigint AS batch_count,
       coalesce(undelivered.event_count, 0)::bigint AS undelivered_count,
       coalesce(quarantined.held, 0)::bigint AS quarantined_count,
       coalesce(quarantined.discarded, 0)::bigint AS discarded_count,
       coalesce(quarantined.replaced, 0)::bigint AS replaced_count,
       coalesce(delivered.id_sum, 0) AS id_sum,
       coalesce(delivered.position_sum, 0) AS position_sum,
       coalesce(delivered.context_sum, 0) AS context_sum
FROM wanted
CROSS JOIN bound
LEFT JOIN undelivered ON undelivered.recorded_on = wanted.day
LEFT JOIN delivered ON delivered.recorded_on = wanted.day
LEFT JOIN quarantined ON quarantined.recorded_on = wanted.day
ORDER BY wanted.day
