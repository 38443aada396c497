-- Keep the ids that an adoption has gathered; returns how many are new.
WITH kept AS (
    INSERT INTO outbox.delivered_elsewhere (event_id, batch_id, position)
    SELECT DISTINCT ON (event_id) event_id, batch_id, position FROM pg_temp.elsewhere
    ON CONFLICT (event_id) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM kept
