-- The state of the whole outbox in one snapshot, so that an event on its way from one place to the next is counted once.
-- The age of what was recorded in the future is not known: how far ahead that is counts instead.
WITH {{ pending }},
open_batch AS MATERIALIZED (
    SELECT batch_id, status, event_count - coalesce(rejected_count, 0) AS event_count, last_error, last_error_kind,
           greatest(cut_at, requested_at, started_at) AS changed_at,
           CASE WHEN processed_at IS NULL THEN oldest_recorded_at END AS oldest_at
    FROM outbox.batch
    WHERE status <> 'processed'
),
{{ open_sum }},
processed_sum AS (
    SELECT coalesce(sum(accepted_count), 0) AS event_count,
           count(former_positions) AS split_batches,
           max(processed_at) FILTER (WHERE processed_at <= clock_timestamp() AND former_positions IS NULL) AS last_at
    FROM outbox.batch
    WHERE status = 'processed'
),
failure AS (
    SELECT batch_id, last_error, last_error_kind
    FROM open_batch
    WHERE last_error IS NOT NULL
    ORDER BY changed_at DESC
    LIMIT 1
)
SELECT pending_sum.event_count AS pending,
       pending_sum.event_count >= :limit OR (SELECT count(*) FROM stretch) >= :max_stretches AS pending_is_at_least,
       open_sum.in_flight::bigint AS in_flight,
       open_sum.parked::bigint AS parked,
       processed_sum.event_count::bigint AS processed,
       (SELECT count(*) FROM outbox.quarantined_event WHERE status = 'held') AS quarantined,
       greatest(
           0,
           extract(epoch FROM clock_timestamp() - least(pending_sum.oldest_at, open_sum.oldest_at)),
           extract(epoch FROM greatest(pending_sum.newest_at, open_sum.newest_at) - clock_timestamp())
       )::float AS lag_seconds,
       (pending_sum.future_count + open_sum.future_count)::bigint AS future,
       greatest(0, extract(epoch FROM greatest(pending_sum.newest_at, open_sum.newest_at) - clock_timestamp()))::float
           AS future_seconds,
       CASE WHEN pending_sum.future_count + open_sum.future_count > 0
            THEN greatest(pending_sum.newest_at, open_sum.newest_at) END AS future_until,
       (SELECT coalesce(jsonb_object_agg(status, batch_count), '{}')
        FROM (SELECT status, count(*) AS batch_count FROM open_batch GROUP BY status) AS counted) AS open_batches,
       (SELECT count(*) FROM outbox.gap) AS gaps,
       oldest_gap.observed_at AS oldest_gap_at,
       coalesce(oldest_gap.holders, '{}') AS oldest_gap_holders,
       failure.last_error,
       failure.last_error_kind,
       failure.batch_id AS last_error_batch_id,
       processed_sum.last_at AS last_processed_at,
       processed_sum.split_batches
FROM pending_sum
CROSS JOIN open_sum
CROSS JOIN processed_sum
LEFT JOIN failure ON true
LEFT JOIN (SELECT observed_at, holders FROM outbox.gap ORDER BY gap_id LIMIT 1) AS oldest_gap ON true
