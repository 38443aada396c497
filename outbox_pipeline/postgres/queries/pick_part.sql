-- The visible events of the unclaimed positions in order, up to the limits, all of the first one's day: some of those looked at.
-- Each stretch of positions has its own probe with a plain upper bound: an OR there would scan to the table's end.
-- An event's bytes are counted as in pick_events.sql.
-- Stretches come in order and each probe is sorted after the one before it, so the limit ends the probing.
-- Positions in a row become one range before anything is made of them: a range for each would double the time.
WITH looked AS MATERIALIZED (
    SELECT event.position, event.recorded_at, event.context_bytes
    FROM (
        SELECT lower(stretch) AS first_position, upper(stretch) AS end_position
        FROM unnest(CAST(:unclaimed AS int8multirange)) AS stretch
        ORDER BY lower(stretch)
    ) AS ordered
    CROSS JOIN LATERAL (
        SELECT position, recorded_at, context_bytes + greatest(
            octet_length(event_type) + octet_length(environment) + coalesce(octet_length(trace_context), 0) - 200, 0
        ) AS context_bytes
        FROM outbox.event
        WHERE position >= first_position AND position < coalesce(end_position, 9223372036854775807)
        ORDER BY position
        LIMIT :max_events
    ) AS event
    ORDER BY first_position, event.position
    LIMIT :max_events
),
first_event AS MATERIALIZED (
    SELECT greatest(CAST(:first_day AS date), least((recorded_at AT TIME ZONE 'UTC')::date, today)) AS recorded_on, today
    FROM looked CROSS JOIN (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS today) AS clock
    ORDER BY position
    LIMIT 1
),
-- Its day as times; what was recorded before the first day or after today counts as recorded on these.
day AS MATERIALIZED (
    SELECT CASE WHEN recorded_on > CAST(:first_day AS date)
                THEN recorded_on::timestamp AT TIME ZONE 'UTC' ELSE '-infinity' END AS since,
           CASE WHEN recorded_on < today
                THEN (recorded_on + 1)::timestamp AT TIME ZONE 'UTC' ELSE 'infinity' END AS until
    FROM first_event
),
same_day AS (
    SELECT position, recorded_at, context_bytes,
           row_number() OVER in_order AS nth,
           sum(context_bytes) OVER in_order AS bytes_so_far
    FROM looked CROSS JOIN day
    WHERE recorded_at >= since AND recorded_at < until
    WINDOW in_order AS (ORDER BY position ROWS UNBOUNDED PRECEDING)
),
run_of_positions AS (
    SELECT int8range(min(position), max(position), '[]') AS positions,
           count(*) AS event_count, sum(context_bytes) AS context_bytes, min(recorded_at) AS oldest_recorded_at
    FROM same_day
    WHERE nth = 1 OR bytes_so_far <= :max_bytes
    GROUP BY position - nth
),
picked AS MATERIALIZED (
    SELECT sum(event_count)::integer AS event_count,
           range_agg(positions)::text AS positions,
           min(lower(positions)) AS first_position,
           max(upper(positions)) - 1 AS last_position,
           sum(context_bytes)::bigint AS context_bytes,
           min(oldest_recorded_at) AS oldest_recorded_at
    FROM run_of_positions
),
passed AS MATERIALIZED (
    SELECT count(*)::integer AS looked_count, count(*) FILTER (WHERE position <= last_position) AS visible_count
    FROM looked CROSS JOIN picked
)
SELECT coalesce(picked.event_count, 0) AS event_count,
       picked.positions, picked.first_position, picked.last_position, first_event.recorded_on,
       picked.context_bytes, picked.oldest_recorded_at,
       extract(epoch FROM clock_timestamp() - picked.oldest_recorded_at)::float AS oldest_age_seconds,
       passed.looked_count,
       CASE WHEN passed.visible_count = picked.event_count THEN picked.positions
            ELSE (SELECT range_agg(int8range(position, position + 1))::text FROM looked WHERE position <= last_position)
       END AS visible
FROM picked CROSS JOIN passed LEFT JOIN first_event ON true
