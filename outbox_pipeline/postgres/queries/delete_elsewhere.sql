-- Look at the next old ids of events that another instance delivered, and forget those of which no event is here, like
-- those of events that were delivered here as long ago. An event that is here may still be waiting for its delivery.
-- The next ones from a place on: those that stay would else be looked at again by each step.
WITH looked AS MATERIALIZED (
    SELECT adopted_at, event_id FROM outbox.delivered_elsewhere
    WHERE (adopted_at, event_id) > (CAST(:after_time AS timestamptz), CAST(:after_id AS uuid))
        AND adopted_at < least(statement_timestamp(), CAST(:now AS timestamptz)) - make_interval(days => :days)
    ORDER BY adopted_at, event_id
    LIMIT :limit
),
deleted AS (
    DELETE FROM outbox.delivered_elsewhere
    WHERE event_id = ANY (ARRAY(
        SELECT event_id FROM looked WHERE NOT EXISTS (SELECT FROM outbox.event WHERE event.event_id = looked.event_id)
    ))
    RETURNING 1
)
SELECT adopted_at, event_id, (SELECT count(*) FROM deleted) AS forgotten FROM looked
ORDER BY adopted_at DESC, event_id DESC
LIMIT 1
