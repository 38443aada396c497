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

-- Whoever takes an id first keeps it, so a repeat that says something else must not pass unseen. Producers read no event:
-- they are told no more than that.
CREATE FUNCTION outbox.event_differs(event_id uuid, event_type text, event_context text, metadata_version bigint)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    differs boolean := EXISTS (
        SELECT FROM outbox.event
        WHERE event.event_id = event_differs.event_id
            AND (event.event_type, event.metadata_version, event.event_context::text) IS DISTINCT FROM
                (event_differs.event_type, event_differs.metadata_version, event_differs.event_context)
    );
BEGIN
    IF differs THEN
        RAISE WARNING 'Event % is in the outbox with another type, version or context, and is not written again', event_id
            USING HINT = 'Publish what is new under an event_id of its own.';
    END IF;
    RETURN differs;
END $$;

COMMENT ON FUNCTION outbox.event_differs IS 'Whether the outbox has an event with this id and another type, version or context, byte for byte; a warning then names the id.';

-- As before, and a repeat that says something else is warned of.
CREATE OR REPLACE FUNCTION outbox.publish(
    event_type text, event_context json, environment text DEFAULT 'development', metadata_version bigint DEFAULT 1,
    event_date_time timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL, trace_context text DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    id uuid := coalesce(publish.event_id, gen_random_uuid());
BEGIN
    INSERT INTO outbox.event
        (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
    VALUES (id, publish.event_type, coalesce(publish.event_date_time, clock_timestamp()), publish.environment,
            publish.event_context, publish.metadata_version, publish.trace_context)
    ON CONFLICT ON CONSTRAINT event_event_id_key DO NOTHING;
    IF NOT FOUND THEN
        PERFORM outbox.event_differs(id, publish.event_type, publish.event_context::text, publish.metadata_version);
    END IF;
    RETURN id;
END $$;

COMMENT ON FUNCTION outbox.publish IS 'Publish one event in the caller''s transaction; a repeated event_id changes nothing, with a warning when it says something else. Returns the event_id.';

-- As before, and who publishes may ask whether a repeat differs.
CREATE OR REPLACE FUNCTION outbox.grant_roles() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name text;
BEGIN
    -- Here and not in the migration alone: a restore without privileges opens every function to everybody again.
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
    FOREACH role_name IN ARRAY ARRAY['outbox_producer', 'outbox_pipeline'] LOOP
        BEGIN
            IF to_regrole(role_name) IS NULL THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'Role % is missing and this user may not create it', role_name
                    USING HINT = format('CREATE ROLE %I as a superuser, then SELECT outbox.grant_roles().', role_name);
                CONTINUE;
        END;
        EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', role_name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.publish, outbox.event_differs TO %I', role_name);
        -- ON CONFLICT (event_id) needs SELECT there. Without naming the column it would need none, but would swallow a
        -- clash of positions and with it the event.
        EXECUTE format(
            'GRANT SELECT (event_id), INSERT (event_id, event_type, event_date_time, environment, event_context,'
            ' metadata_version, trace_context) ON outbox.event TO %I', role_name);
    END LOOP;
    IF to_regrole('outbox_producer') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION outbox.capture, outbox.release_capture, outbox.capture_refusal,
            outbox.publish_captured TO outbox_producer;
    END IF;
    IF to_regrole('outbox_pipeline') IS NOT NULL THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_pipeline;
        GRANT SELECT ON SEQUENCE outbox.event_position_seq TO outbox_pipeline;
        GRANT DELETE ON outbox.event TO outbox_pipeline;
        GRANT UPDATE ON outbox.unclaimed, outbox.watermark TO outbox_pipeline;
        GRANT INSERT, DELETE ON outbox.gap TO outbox_pipeline;
        GRANT INSERT, UPDATE, DELETE ON outbox.batch TO outbox_pipeline;
        GRANT INSERT, UPDATE ON outbox.quarantined_event TO outbox_pipeline;
        GRANT EXECUTE ON FUNCTION outbox.advance_positions TO outbox_pipeline;
    END IF;
END $$;

SELECT outbox.grant_roles();
