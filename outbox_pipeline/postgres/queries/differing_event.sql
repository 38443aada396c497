-- The id of a repeated event when the outbox has it with another type, version or context; NULL when it has the same.
SELECT CASE WHEN outbox.event_differs(
    CAST(CAST(:event_id AS text) AS uuid), CAST(:event_type AS text), CAST(:event_context AS text),
    CAST(CAST(:metadata_version AS text) AS bigint)
) THEN CAST(:event_id AS text) END
