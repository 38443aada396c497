-- Forget the oldest ids of events that another instance delivered, like those of events that were delivered here as long
-- ago. One under which an event is here stays: that event may still be waiting for its delivery.
WITH doomed AS MATERIALIZED (
    SELECT event_id FROM outbox.delivered_elsewhere
    WHERE adopted_at < least(clock_timestamp(), CAST(:now AS timestamptz)) - make_interval(days => :days)
        AND NOT EXISTS (SELECT FROM outbox.event WHERE event.event_id = delivered_elsewhere.event_id)
    ORDER BY adopted_at
    LIMIT :limit
),
deleted AS (
    DELETE FROM outbox.delivered_elsewhere USING doomed
    WHERE delivered_elsewhere.event_id = doomed.event_id
    RETURNING 1
)
SELECT count(*) FROM deleted
