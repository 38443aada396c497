-- Write a page of events in their order, leaving out those whose id the outbox has already.
-- Each column comes as one text, its values parted by chr(30), a missing trace as chr(29). Drivers take 20 microseconds
-- an event to write arrays and 2 to join texts; COPY would need a temporary table, which prepared transactions and
-- roles without TEMP are refused.
INSERT INTO outbox.event
    (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
SELECT CAST(page.event_id AS uuid), page.event_type, CAST(page.event_date_time AS timestamptz), page.environment,
       CAST(page.event_context AS json), CAST(page.metadata_version AS bigint), page.trace_context
FROM unnest(
    string_to_array(CAST(:event_id AS text), chr(30)),
    string_to_array(CAST(:event_type AS text), chr(30)),
    string_to_array(CAST(:event_date_time AS text), chr(30)),
    string_to_array(CAST(:environment AS text), chr(30)),
    string_to_array(CAST(:event_context AS text), chr(30)),
    string_to_array(CAST(:metadata_version AS text), chr(30)),
    string_to_array(CAST(:trace_context AS text), chr(30), chr(29))
) AS page (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
ON CONFLICT (event_id) DO NOTHING
