-- The visible events of the unclaimed positions in order, up to a number: all of them, when they are of one day and not
-- too many bytes (is_whole), as nearly always. Then nothing is sorted, and what is made of an event costs little.
-- Each stretch of positions has its own probe with a plain upper bound: an OR there would scan to the table's end.
-- Stretches come in order, so the limit ends the probing; were they ever not, what was left out would become a gap and be
-- found there.
WITH run_of_positions AS MATERIALIZED (
    SELECT int8range(min(position), max(position), '[]') AS positions, count(*) AS event_count,
           sum(context_bytes) AS context_bytes, min(recorded_at) AS oldest, max(recorded_at) AS newest
    FROM (
        SELECT first_position, event.*
        FROM (
            SELECT lower(stretch) AS first_position, upper(stretch) AS end_position
            FROM unnest(CAST(:unclaimed AS int8multirange)) AS stretch
            ORDER BY lower(stretch)
        ) AS ordered
        CROSS JOIN LATERAL (
            SELECT position, recorded_at, context_bytes, row_number() OVER (ORDER BY position) AS nth
            FROM outbox.event
            WHERE position >= first_position AND position < coalesce(end_position, 9223372036854775807)
            ORDER BY position
            LIMIT :max_events
        ) AS event
        LIMIT :max_events
    ) AS looked
    GROUP BY first_position, position - nth
),
total AS (
    SELECT sum(event_count)::integer AS event_count, range_agg(positions)::text AS positions,
           min(lower(positions)) AS first_position, max(upper(positions)) - 1 AS last_position,
           sum(context_bytes)::bigint AS context_bytes, min(oldest) AS oldest, max(newest) AS newest
    FROM run_of_positions
),
dated AS (
    SELECT total.*,
           greatest(CAST(:first_day AS date), least((oldest AT TIME ZONE 'UTC')::date, today)) AS first_day,
           greatest(CAST(:first_day AS date), least((newest AT TIME ZONE 'UTC')::date, today)) AS last_day
    FROM total CROSS JOIN (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS today) AS clock
)
SELECT coalesce(event_count, 0) AS event_count, positions, first_position, last_position, first_day AS recorded_on,
       context_bytes, oldest AS oldest_recorded_at,
       extract(epoch FROM clock_timestamp() - oldest)::float AS oldest_age_seconds,
       coalesce(event_count, 0) AS looked_count, positions AS visible,
       coalesce(first_day = last_day AND context_bytes <= :max_bytes, true) AS is_whole
FROM dated
