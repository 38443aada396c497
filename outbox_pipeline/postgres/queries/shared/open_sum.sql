-- What open_batch adds up to; of a batch its oldest event counts.
open_sum AS (
    SELECT coalesce(sum(event_count) FILTER (WHERE status <> 'parked'), 0) AS in_flight,
           coalesce(sum(event_count) FILTER (WHERE status = 'parked'), 0) AS parked,
           min(oldest_at) AS oldest_at, max(oldest_at) AS newest_at,
           coalesce(sum(event_count) FILTER (WHERE oldest_at > clock_timestamp()), 0) AS future_count
    FROM open_batch
)
