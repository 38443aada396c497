-- What a producer may write: names of a bounded size. Who wrote an event is PostgreSQL's to note, never the producer's.

-- A captured table whose names are longer than these limits would refuse its application's writes from here on.
DO $$
DECLARE
    captured text;
BEGIN
    SELECT tgrelid::regclass INTO captured
    FROM pg_trigger
    CROSS JOIN LATERAL (SELECT position('\x00'::bytea IN tgargs) - 1) AS type (bytes)
    CROSS JOIN LATERAL (SELECT position('\x00'::bytea IN substring(tgargs FROM type.bytes + 2)) - 1) AS environment (bytes)
    WHERE tgfoid = 'outbox.publish_captured'::regproc AND (type.bytes > 500 OR environment.bytes > 200)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'Table % is captured with an event_type of more than 490 bytes or an environment of more than 200: '
            'call outbox.capture again with shorter ones', captured
            USING ERRCODE = 'invalid_object_definition';
    END IF;
END $$;

-- NOT VALID: a look at all rows would hold every producer up. Validation judges those from before.
ALTER TABLE outbox.event
    ADD CONSTRAINT event_type_has_at_most_500_bytes CHECK (octet_length(event_type) <= 500) NOT VALID,
    ADD CONSTRAINT environment_has_at_most_200_bytes CHECK (octet_length(environment) <= 200) NOT VALID,
    ADD CONSTRAINT trace_context_has_at_most_8192_bytes CHECK (octet_length(trace_context) <= 8192) NOT VALID;

-- First without a default, which would be written into every row: who published those from before is not known.
ALTER TABLE outbox.event ADD COLUMN published_by text;
ALTER TABLE outbox.event ALTER COLUMN published_by SET DEFAULT session_user;

COMMENT ON COLUMN outbox.event.published_by IS 'The role that had logged in where the event was written, whatever SET ROLE or a function''s owner made of it. NULL: written before this was noted.';
COMMENT ON COLUMN outbox.batch.context_bytes IS 'Bytes of its contexts, and of the other texts of an event beyond 200: what the size limit counts.';

-- As before, and nothing is captured under names that a write would then be refused for.
CREATE OR REPLACE FUNCTION outbox.capture(
    captured_table regclass, event_type text DEFAULT NULL, environment text DEFAULT 'development',
    columns text[] DEFAULT '{}', except_columns text[] DEFAULT '{}', metadata_version bigint DEFAULT 1
) RETURNS text[] LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target record;
    trigger_event text;
    published text;
    types text[] := '{}';
    refusal text := CASE
        WHEN event_type ~ '^\s*$' OR octet_length(event_type) > 490 THEN 'event_type must have 1 to 490 bytes'
        WHEN coalesce(environment, '') ~ '^\s*$' OR octet_length(environment) > 200
            THEN 'environment must have 1 to 200 bytes'
        WHEN coalesce(metadata_version, 0) < 1 THEN 'metadata_version must be 1 or more'
        WHEN columns IS NULL OR except_columns IS NULL THEN 'leave columns and except_columns out to capture all'
        ELSE outbox.capture_refusal(captured_table, columns, except_columns)
    END;
BEGIN
    SELECT nspname, relname INTO target
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = captured_table;
    IF NOT FOUND OR refusal IS NOT NULL THEN
        RAISE EXCEPTION 'outbox.capture refuses %: %',
            coalesce(captured_table::text, 'NULL'), coalesce(refusal, 'there is no such table')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH trigger_event IN ARRAY ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'] LOOP
        published := coalesce(event_type, target.relname) || '_' || rtrim(lower(trigger_event), 'e') || 'ed';
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER %I AFTER %s ON %I.%I %s FOR EACH STATEMENT'
            ' EXECUTE FUNCTION outbox.publish_captured(%L, %L, %L, %L, %L)',
            'outbox_capture_' || lower(trigger_event), trigger_event, target.nspname, target.relname,
            CASE trigger_event WHEN 'INSERT' THEN 'REFERENCING NEW TABLE AS new_row'
                               WHEN 'UPDATE' THEN 'REFERENCING NEW TABLE AS new_row OLD TABLE AS old_row'
                               WHEN 'DELETE' THEN 'REFERENCING OLD TABLE AS old_row' ELSE '' END,
            published, environment, metadata_version, columns, except_columns);
        types := types || published;
    END LOOP;
    RETURN types;
END $$;
