-- Publishing with least privilege: two group roles, a publish function that needs no right on the table, and triggers
-- that publish what happens to a table of an application that cannot be changed.

-- The function writes with its owner's rights and does nothing else, so EXECUTE on it is all that a caller needs.
ALTER FUNCTION outbox.publish SECURITY DEFINER;

CREATE FUNCTION outbox.advance_positions(past bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF past > coalesce(pg_sequence_last_value('outbox.event_position_seq'::regclass), 0) THEN
        PERFORM setval('outbox.event_position_seq', past);
    END IF;
END $$;

COMMENT ON FUNCTION outbox.advance_positions IS 'Let the next position be drawn above this one; never moves the sequence back. Survives a rollback.';

-- Capture. Transition tables make one trigger call of a statement, however many rows it changed.

CREATE FUNCTION outbox.publish_captured() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC' SET datestyle = 'ISO' SET intervalstyle = 'iso_8601' SET extra_float_digits = 1
    SET bytea_output = 'hex' AS $$
DECLARE
    listed text[] := TG_ARGV[3];    -- none: all
    left_out text[] := TG_ARGV[4];
    gone text;
    shown text;
    contexts text;
BEGIN
    -- Without its transition tables the names below would be looked up among the caller's temporary views, and those
    -- would run with the rights of this function.
    IF TG_LEVEL <> 'STATEMENT' OR NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = TG_RELID AND tgname = TG_NAME
            AND (tgnewtable = 'new_row' OR TG_OP IN ('DELETE', 'TRUNCATE'))
            AND (tgoldtable = 'old_row' OR TG_OP IN ('INSERT', 'TRUNCATE'))
    ) THEN
        RAISE EXCEPTION 'Trigger % on % was not made by outbox.capture', TG_NAME, TG_RELID::regclass
            USING HINT = 'Drop it and call outbox.capture.', ERRCODE = 'restrict_violation';
    END IF;
    SELECT name INTO gone FROM unnest(listed || left_out) AS name
    WHERE NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = TG_RELID AND attname = name AND attnum > 0 AND NOT attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION 'Column % of captured table % is gone or has another name', gone, TG_RELID::regclass
            USING HINT = 'Call outbox.capture again with the columns it has now.', ERRCODE = 'undefined_column';
    END IF;
    -- row_to_json would call casts to json that any user can define for their own types, with this function's rights.
    -- So only built-in types and domains over them go through it; of others the type's output is written.
    SELECT string_agg(
        CASE WHEN attribute.atttypid < 16384 OR (kind.typtype = 'd' AND kind.typbasetype < 16384)
            THEN quote_ident(attname)
            ELSE format('CASE WHEN num_nonnulls(%1$I) = 1 THEN format(''%%s'', %1$I) END AS %1$I', attname)
        END, ', ' ORDER BY attnum)
    INTO shown
    FROM pg_attribute AS attribute JOIN pg_type AS kind ON kind.oid = attribute.atttypid
    WHERE attrelid = TG_RELID AND attnum > 0 AND NOT attisdropped
        AND attgenerated <> 'v'  -- transition tables have NULL there
        AND (listed = '{}' OR attname = ANY (listed)) AND NOT attname = ANY (left_out);
    contexts := CASE TG_OP
        WHEN 'INSERT' THEN format(
            'SELECT json_build_object(''new'', row_to_json(one.*)) FROM (SELECT %s FROM new_row) AS one', shown)
        WHEN 'DELETE' THEN format(
            'SELECT json_build_object(''old'', row_to_json(one.*)) FROM (SELECT %s FROM old_row) AS one', shown)
        -- Both tables hold the rows in the order in which the statement changed them, primary key or not.
        WHEN 'UPDATE' THEN format(
            'SELECT json_build_object(''new'', after.content, ''old'', before.content)'
            ' FROM (SELECT row_number() OVER () AS nth, row_to_json(one.*) AS content'
            '       FROM (SELECT %1$s FROM new_row) AS one) AS after'
            ' JOIN (SELECT row_number() OVER () AS nth, row_to_json(one.*) AS content'
            '       FROM (SELECT %1$s FROM old_row) AS one) AS before USING (nth)'
            ' WHERE after.content::text <> before.content::text ORDER BY nth', shown)
        ELSE 'SELECT ''{}''::json' END;
    EXECUTE 'INSERT INTO outbox.event (event_type, environment, metadata_version, event_context)'
            ' SELECT $1, $2, $3, change.context FROM (' || contexts || ') AS change (context)'
    USING TG_ARGV[0], TG_ARGV[1], TG_ARGV[2]::bigint;
    RETURN NULL;
END $$;

CREATE FUNCTION outbox.capture_refusal(captured_table regclass, columns text[], except_columns text[]) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH shown AS (
        SELECT attname::text AS name FROM pg_attribute
        WHERE attrelid = captured_table AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v'
    ),
    unknown AS (
        SELECT string_agg(coalesce(quote_ident(name), 'NULL'), ', ' ORDER BY name) AS names
        FROM (SELECT unnest(columns || except_columns) AS name EXCEPT SELECT name FROM shown) AS named
    )
    SELECT CASE
        WHEN NOT pg_has_role(current_user, relowner, 'USAGE') THEN 'only its owner may capture it'
        WHEN relnamespace IN ('outbox'::regnamespace, 'pg_catalog'::regnamespace)
            THEN 'it is a table of the outbox or of PostgreSQL itself'
        WHEN relkind = 'p' OR relispartition OR EXISTS (SELECT FROM pg_inherits WHERE oid IN (inhrelid, inhparent))
            THEN 'statements on a partition or child pass by the triggers of its parent, and the other way round'
        WHEN relkind <> 'r' OR relpersistence = 't'
            THEN 'only a permanent table of this database has triggers that see all rows of a statement'
        WHEN cardinality(columns) > 0 AND cardinality(except_columns) > 0
            THEN 'name either columns or except_columns'
        WHEN unknown.names IS NOT NULL
            THEN format('it has no column %s (of generated ones, only stored ones can be captured)', unknown.names)
        WHEN ARRAY(SELECT name FROM shown) <@ except_columns THEN 'no column is left'
    END
    FROM pg_class CROSS JOIN unknown WHERE oid = captured_table
$$;

CREATE FUNCTION outbox.capture(
    captured_table regclass, event_type text DEFAULT NULL, environment text DEFAULT 'development',
    columns text[] DEFAULT '{}', except_columns text[] DEFAULT '{}', metadata_version bigint DEFAULT 1
) RETURNS text[] LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target record;
    trigger_event text;
    published text;
    types text[] := '{}';
    refusal text := CASE
        WHEN event_type ~ '^\s*$' OR length(event_type) > 180 THEN 'event_type must have 1 to 180 characters'
        WHEN coalesce(environment, '') ~ '^\s*$' THEN 'environment must not be empty'
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

COMMENT ON FUNCTION outbox.capture IS 'Publish each insert, update, delete and truncate of a table as events in the same transaction. Again: replaces. Returns the event types.';

CREATE FUNCTION outbox.release_capture(captured_table regclass) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made record;
    released boolean := false;
BEGIN
    FOR made IN
        SELECT tgname, nspname, relname
        FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE tgrelid = captured_table AND tgfoid = 'outbox.publish_captured'::regproc
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %I.%I', made.tgname, made.nspname, made.relname);
        released := true;
    END LOOP;
    RETURN released;
END $$;

COMMENT ON FUNCTION outbox.release_capture IS 'Stop capturing a table; false when it was not captured. What it published stays.';

-- Roles belong to the whole cluster: another database may have made them, and this user may not be allowed to.

CREATE FUNCTION outbox.grant_roles() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
        EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.publish TO %I', role_name);
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
        GRANT UPDATE ON outbox.unclaimed TO outbox_pipeline;
        GRANT INSERT, DELETE ON outbox.gap TO outbox_pipeline;
        GRANT INSERT, UPDATE, DELETE ON outbox.batch TO outbox_pipeline;
        GRANT INSERT, UPDATE ON outbox.quarantined_event TO outbox_pipeline;
        GRANT EXECUTE ON FUNCTION outbox.advance_positions TO outbox_pipeline;
    END IF;
END $$;

COMMENT ON FUNCTION outbox.grant_roles IS 'Create the roles outbox_producer and outbox_pipeline where they are missing and may be created, and give them, and nobody else, their rights here. Safe to repeat.';

SELECT outbox.grant_roles();
