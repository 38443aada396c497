-- Write one event; nothing when the outbox has its id already.
-- Each value comes as text, so that the statement is the same for every driver. Naming the column of the conflict
-- matters: without it a clash of positions would pass in silence and lose the event.
INSERT INTO outbox.event
    (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
VALUES (CAST(CAST(:event_id AS text) AS uuid), CAST(:event_type AS text),
        CAST(CAST(:event_date_time AS text) AS timestamptz), CAST(:environment AS text),
        CAST(CAST(:event_context AS text) AS json), CAST(CAST(:metadata_version AS text) AS bigint),
        CAST(:trace_context AS text))
ON CONFLICT (event_id) DO NOTHING
