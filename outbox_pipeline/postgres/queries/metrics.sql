-- What a scrape shows of the ledger, in one snapshot. Bounded: pending events are counted up to :limit, and what is said of
-- speed is about the last hour. The age of what was recorded in the future is not known: how far ahead that is counts instead.
WITH {{ pending }},
drawn AS (
    SELECT coalesce(pg_sequence_last_value('outbox.event_position_seq'::regclass), 0) AS last_position
),
-- No event can be where no position was drawn: as many as there are positions, at most.
drawn_sum AS (
    SELECT sum(greatest(0, least(coalesce(upper(stretch.positions), 9223372036854775807), drawn.last_position + 1)
                           - lower(stretch.positions))) AS position_count
    FROM stretch CROSS JOIN drawn
),
open_batch AS MATERIALIZED (
    SELECT status, event_count - coalesce(rejected_count, 0) AS event_count,
           failures + transient_failures AS failures, coalesce(last_error_kind, 'unknown') AS kind,
           CASE WHEN processed_at IS NULL THEN oldest_recorded_at END AS oldest_at
    FROM outbox.batch
    WHERE status <> 'processed'
),
{{ open_sum }},
-- A batch that is delivered once more has been processed all the same, so that the totals do not fall meanwhile.
total AS (
    SELECT coalesce(sum(accepted_count) FILTER (WHERE processed_at IS NOT NULL), 0) AS events,
           count(processed_at) FILTER (WHERE former_positions IS NULL) AS batches,
           count(former_positions) AS split_batches,
           -- The attempt that splits a batch has a number that is higher by a million.
           coalesce(sum(attempt % 1000000), 0) AS attempts,
           max(processed_at) FILTER (WHERE processed_at <= clock_timestamp() AND former_positions IS NULL) AS last_at
    FROM outbox.batch
),
recent AS MATERIALIZED (
    SELECT accepted_count AS event_count, attempt, extract(epoch FROM processed_at - started_at)::float AS seconds
    FROM outbox.batch
    WHERE processed_at > clock_timestamp() - interval '1 hour' AND processed_at <= clock_timestamp()
        AND status = 'processed'
)
SELECT CASE WHEN pending_sum.event_count < :limit THEN pending_sum.event_count
            ELSE greatest(pending_sum.event_count, drawn_sum.position_count) END::bigint AS pending,
       open_sum.in_flight::bigint AS in_flight,
       open_sum.parked::bigint AS parked,
       (SELECT count(*) FROM outbox.quarantined_event WHERE status = 'held') AS quarantined,
       greatest(
           0,
           extract(epoch FROM clock_timestamp() - least(pending_sum.oldest_at, open_sum.oldest_at)),
           extract(epoch FROM greatest(pending_sum.newest_at, open_sum.newest_at) - clock_timestamp())
       )::float AS lag_seconds,
       (pending_sum.future_count + open_sum.future_count)::bigint AS future,
       greatest(0, extract(epoch FROM greatest(pending_sum.newest_at, open_sum.newest_at) - clock_timestamp()))::float
           AS future_seconds,
       (SELECT coalesce(jsonb_object_agg(status, batch_count), '{}')
        FROM (SELECT status, count(*) AS batch_count FROM open_batch GROUP BY status) AS counted) AS open_batches,
       (SELECT coalesce(jsonb_object_agg(kind, failure_count), '{}')
        FROM (SELECT kind, sum(failures) AS failure_count FROM open_batch WHERE failures > 0 GROUP BY kind) AS counted)
           AS failed_attempts,
       (SELECT count(*) FROM outbox.gap) AS gaps,
       coalesce(abs(extract(epoch FROM clock_timestamp() - (SELECT min(observed_at) FROM outbox.gap))), 0)::float
           AS oldest_gap_seconds,
       total.events::bigint AS processed_total,
       total.batches AS batches_total,
       total.split_batches AS split_total,
       total.attempts::bigint AS attempts_total,
       extract(epoch FROM total.last_at)::float AS last_processed_at,
       extract(epoch FROM (SELECT recorded_at FROM outbox.event ORDER BY position LIMIT 1))::float AS oldest_event_at,
       (SELECT count(*) FROM recent) AS recent_batches,
       (SELECT coalesce(sum(event_count), 0) FROM recent)::bigint AS recent_events,
       (SELECT count(*) FROM recent WHERE attempt > 1) AS recent_repeated,
       (SELECT percentile_disc(:quantiles) WITHIN GROUP (ORDER BY event_count) FROM recent) AS recent_sizes,
       (SELECT percentile_disc(:quantiles) WITHIN GROUP (ORDER BY seconds) FROM recent) AS recent_seconds
FROM pending_sum CROSS JOIN drawn_sum CROSS JOIN open_sum CROSS JOIN total
