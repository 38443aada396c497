-- The ids, parted by spaces, of the events of a page that the outbox has with another type, version or context; NULL for none.
-- The columns come as in insert_events.sql.
SELECT string_agg(page.event_id, ' ')
FROM unnest(
    string_to_array(CAST(:event_id AS text), chr(30)),
    string_to_array(CAST(:event_type AS text), chr(30)),
    string_to_array(CAST(:event_context AS text), chr(30)),
    string_to_array(CAST(:metadata_version AS text), chr(30))
) AS page (event_id, event_type, event_context, metadata_version)
WHERE outbox.event_differs(
    CAST(page.event_id AS uuid), page.event_type, page.event_context, CAST(page.metadata_version AS bigint)
)
