-- outbox.publish takes jsonb too, and goes on taking json wherever it did.

-- The type of an argument decides between the two forms. Where it has none, as a literal or a driver's parameter, both fit,
-- and PostgreSQL drops the one whose other argument is of a type that is not preferred among texts: a domain is not. So
-- all that was called before is still json, and a driver is still told that the parameter is json. A third form with text
-- would be taken for a literal, or make it ambiguous.
CREATE DOMAIN outbox.event_type_name AS text;

COMMENT ON DOMAIN outbox.event_type_name IS 'Any text. Lets outbox.publish with json be chosen before the one with jsonb where the context has no type of its own.';

CREATE FUNCTION outbox.publish(
    event_type outbox.event_type_name, event_context jsonb, environment text DEFAULT 'development',
    metadata_version bigint DEFAULT 1, event_date_time timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL,
    trace_context text DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN outbox.publish(publish.event_type::text, publish.event_context::json, publish.environment,
                          publish.metadata_version, publish.event_date_time, publish.event_id, publish.trace_context);
END $$;

COMMENT ON FUNCTION outbox.publish(outbox.event_type_name, jsonb, text, bigint, timestamptz, uuid, text) IS 'As outbox.publish with json; the context is what jsonb has made of it.';

-- Who was given the function alone can call both.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT pg_get_userbyid(grantee) AS role_name, is_grantable
        FROM pg_proc CROSS JOIN LATERAL aclexplode(proacl)
        WHERE pg_proc.oid = 'outbox.publish(text, json, text, bigint, timestamptz, uuid, text)'::regprocedure
            AND privilege_type = 'EXECUTE' AND grantee NOT IN (0, proowner)
    LOOP
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION'
            ' outbox.publish(outbox.event_type_name, jsonb, text, bigint, timestamptz, uuid, text) TO %I',
            granted.role_name) || CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END;
    END LOOP;
END $$;

-- As before, and both forms of outbox.publish are named by their arguments.
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
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION outbox.publish(text, json, text, bigint, timestamptz, uuid, text),'
            ' outbox.publish(outbox.event_type_name, jsonb, text, bigint, timestamptz, uuid, text), outbox.event_differs'
            ' TO %I', role_name);
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
        GRANT INSERT, DELETE ON outbox.gap, outbox.delivered_elsewhere TO outbox_pipeline;
        GRANT INSERT, UPDATE, DELETE ON outbox.batch TO outbox_pipeline;
        GRANT INSERT, UPDATE ON outbox.quarantined_event TO outbox_pipeline;
        GRANT EXECUTE ON FUNCTION outbox.advance_positions, outbox.told_timeline, outbox.move_events
            TO outbox_pipeline;
    END IF;
END $$;

SELECT outbox.grant_roles();
