-- The visible events of the unclaimed positions in order, up to the limits, all of the first one's day.
-- Each stretch of positions has its own probe with a plain upper bound: an OR there would scan to the table's end.
-- Stretches come in order and each probe is sorted after the one before it, so the limit ends the probing.
WITH looked AS MATERIALIZED (
    SELECT event.position, event.recorded_at, event.context_bytes,
           greatest(CAST(:first_day AS date), least(
               (event.recorded_at AT TIME ZONE 'UTC')::date, (clock_timestamp() AT TIME ZONE 'UTC')::date
           )) AS recorded_on
    FROM (
        SELECT lower(stretch) AS first_position, upper(stretch) AS end_position
        FROM unnest(CAST(:unclaimed AS int8multirange)) AS stretch
        ORDER BY lower(stretch)
    ) AS ordered
    CROSS JOIN LATERAL (
        SELECT position, recorded_at, context_bytes
        FROM outbox.event
        WHERE position >= first_position AND position < coalesce(end_position, 9223372036854775807)
        ORDER BY position
        LIMIT :max_events
    ) AS event
    ORDER BY first_position, event.position
    LIMIT :max_events
),
same_day AS (
    SELECT position, recorded_at, context_bytes, recorded_on,
           row_number() OVER (ORDER BY position) AS nth,
           sum(context_bytes) OVER (ORDER BY position) AS bytes_so_far
    FROM looked
    WHERE recorded_on = (SELECT recorded_on FROM looked ORDER BY position LIMIT 1)
),
picked AS (
    SELECT * FROM same_day WHERE nth = 1 OR bytes_so_far <= :max_bytes
)
SELECT count(*)::integer AS event_count,
       range_agg(int8range(position, position + 1))::text AS positions,
       min(position) AS first_position,
       max(position) AS last_position,
       min(recorded_on) AS recorded_on,
       sum(context_bytes)::bigint AS context_bytes,
       min(recorded_at) AS oldest_recorded_at,
       extract(epoch FROM clock_timestamp() - min(recorded_at))::float AS oldest_age_seconds,
       (SELECT count(*) FROM looked)::integer AS looked_count,
       (SELECT range_agg(int8range(position, position + 1))::text FROM looked
        WHERE position <= (SELECT max(position) FROM picked)) AS visible
FROM picked
