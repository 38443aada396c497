-- The visible events of the unclaimed positions in order, up to a number: all of them, when they are of one day and not
-- too many bytes (is_whole), as nearly always. Then nothing is sorted, and an event costs little more than its reading.
-- Each stretch of positions has its own probe with a plain upper bound: an OR there would scan to the table's end.
-- An event's bytes are those of its context, and of its names and trace what is beyond 200: what a batch needs in memory.
-- Stretches come in order, so the limit ends the probing; were they ever not, what was left out would become a gap and be
-- found there.
WITH stretch AS MATERIALIZED (
    SELECT lower(positions) AS first_position, coalesce(upper(positions), 9223372036854775807) AS end_position
    FROM unnest(CAST(:unclaimed AS int8multirange)) AS positions
    ORDER BY lower(positions)
),
total AS MATERIALIZED (
    SELECT count(*)::integer AS event_count, min(position) AS first_position, max(position) AS last_position,
           sum(context_bytes)::bigint AS context_bytes, min(recorded_at) AS oldest, max(recorded_at) AS newest
    FROM (
        SELECT event.*
        FROM stretch
        CROSS JOIN LATERAL (
            SELECT position, recorded_at, context_bytes + greatest(
                octet_length(event_type) + octet_length(environment) + coalesce(octet_length(trace_context), 0) - 200, 0
            ) AS context_bytes
            FROM outbox.event
            WHERE position >= first_position AND position < end_position
            ORDER BY position
            LIMIT :max_events
        ) AS event
        LIMIT :max_events
    ) AS looked
),
-- Where no position is missing that is one range. Else each run of positions begins behind one that is missing, and
-- ends where the last one before the next run is.
run AS (
    SELECT position AS first_position, lead(before) OVER (ORDER BY position) AS last_position
    FROM (
        SELECT event.position, lag(event.position) OVER (ORDER BY event.position) AS before
        FROM total JOIN stretch ON stretch.first_position <= total.last_position
        CROSS JOIN LATERAL (
            SELECT position
            FROM outbox.event
            WHERE position >= stretch.first_position AND position < least(end_position, total.last_position + 1)
            ORDER BY position
            OFFSET 0
        ) AS event
    ) AS neighbours
    WHERE before IS NULL OR position > before + 1
),
dated AS (
    SELECT total.*,
           CASE WHEN event_count = last_position - first_position + 1
                THEN int8multirange(int8range(first_position, last_position, '[]'))
                ELSE (SELECT range_agg(int8range(run.first_position, coalesce(run.last_position, total.last_position), '[]'))
                      FROM run)
           END::text AS positions,
           greatest(CAST(:first_day AS date), least((oldest AT TIME ZONE 'UTC')::date, today)) AS first_day,
           greatest(CAST(:first_day AS date), least((newest AT TIME ZONE 'UTC')::date, today)) AS last_day
    FROM total CROSS JOIN (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS today) AS clock
)
SELECT event_count, positions, first_position, last_position, first_day AS recorded_on,
       context_bytes, oldest AS oldest_recorded_at,
       extract(epoch FROM clock_timestamp() - oldest)::float AS oldest_age_seconds,
       event_count AS looked_count, positions AS visible,
       coalesce(first_day = last_day AND context_bytes <= :max_bytes, true) AS is_whole
FROM dated
