-- What Dagster's own tables say of its daemon, of the sensors beside outbox_sensor and of its queue of runs.
-- Ages come from the epochs in the bodies where there are any: the timestamp columns have no zone and depend on the session's.
WITH instigator AS (
    SELECT selector_id, repository_selector_id, status,
           coalesce(instigator_body::jsonb #>> '{origin,instigator_name}', instigator_body::jsonb #>> '{origin,job_name}')
               AS name
    FROM instigators
),
ours AS (
    SELECT * FROM instigator
    WHERE repository_selector_id IN (SELECT repository_selector_id FROM instigator WHERE name = 'outbox_sensor')
),
tick AS (
    SELECT ours.name, last_tick.status, (last_tick.tick_body::jsonb ->> 'timestamp')::float AS at
    FROM ours
    CROSS JOIN LATERAL (
        SELECT status, tick_body FROM job_ticks
        WHERE job_ticks.selector_id = ours.selector_id ORDER BY timestamp DESC LIMIT 1
    ) AS last_tick
),
waiting AS (
    SELECT count(*) AS run_count, min(create_timestamp) AS oldest_at FROM runs WHERE status = 'QUEUED'
),
working AS (
    SELECT run_id, start_time FROM runs WHERE status IN ('STARTING', 'STARTED', 'CANCELING')
)
SELECT (SELECT coalesce(jsonb_object_agg(
            daemon_type, extract(epoch FROM clock_timestamp()) - (body::jsonb ->> 'timestamp')::float), '{}')
        FROM daemon_heartbeats) AS heartbeat_ages,
       (SELECT coalesce(jsonb_object_agg(name, status), '{}') FROM ours) AS sensors,
       (SELECT coalesce(jsonb_object_agg(name, status), '{}') FROM tick) AS last_ticks,
       (SELECT extract(epoch FROM clock_timestamp())::float - at FROM tick WHERE name = 'outbox_sensor')
           AS outbox_tick_age,
       waiting.run_count AS queued_count,
       coalesce(extract(epoch FROM localtimestamp - waiting.oldest_at), 0)::float AS queued_seconds,
       (SELECT count(*) FROM working) AS working_count,
       (SELECT run_id FROM working ORDER BY start_time LIMIT 1) AS oldest_run_id,
       (SELECT coalesce(extract(epoch FROM clock_timestamp())::float - min(start_time), 0) FROM working)::float
           AS oldest_run_seconds
FROM waiting
