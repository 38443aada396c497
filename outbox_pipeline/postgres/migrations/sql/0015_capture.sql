-- A captured table cannot get a parent, whose statements would pass its triggers by; and capturing it again heals what
-- somebody did to its triggers.

CREATE OR REPLACE FUNCTION outbox.capture(
    captured_table regclass, event_type text DEFAULT NULL, environment text DEFAULT 'development',
    columns text[] DEFAULT '{}', except_columns text[] DEFAULT '{}', metadata_version bigint DEFAULT 1
) RETURNS text[] LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target record;
    trigger_event text;
    other text;
    published text;
    types text[] := '{}';
    was_always boolean;
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
    -- A trigger that was renamed would publish beside the one that is made here.
    FOR other IN
        SELECT tgname FROM pg_trigger
        WHERE tgrelid = captured_table AND tgfoid = 'outbox.publish_captured'::regproc
            AND tgname NOT IN ('outbox_capture_insert', 'outbox_capture_update', 'outbox_capture_delete',
                               'outbox_capture_truncate', 'outbox_capture_refuses_parent')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %I.%I', other, target.nspname, target.relname);
    END LOOP;
    FOREACH trigger_event IN ARRAY ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'] LOOP
        published := coalesce(event_type, target.relname) || '_' || rtrim(lower(trigger_event), 'e') || 'ed';
        was_always := EXISTS (
            SELECT FROM pg_trigger
            WHERE tgrelid = captured_table AND tgname = 'outbox_capture_' || lower(trigger_event) AND tgenabled = 'A');
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER %I AFTER %s ON %I.%I %s FOR EACH STATEMENT'
            ' EXECUTE FUNCTION outbox.publish_captured(%L, %L, %L, %L, %L)',
            'outbox_capture_' || lower(trigger_event), trigger_event, target.nspname, target.relname,
            CASE trigger_event WHEN 'INSERT' THEN 'REFERENCING NEW TABLE AS new_row'
                               WHEN 'UPDATE' THEN 'REFERENCING NEW TABLE AS new_row OLD TABLE AS old_row'
                               WHEN 'DELETE' THEN 'REFERENCING OLD TABLE AS old_row' ELSE '' END,
            published, environment, metadata_version, columns, except_columns);
        -- What is made anew fires as usual; who has let it fire always meant it.
        IF was_always THEN
            EXECUTE format('ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER %I', target.nspname, target.relname,
                           'outbox_capture_' || lower(trigger_event));
        END IF;
        types := types || published;
    END LOOP;
    -- Never fires. PostgreSQL refuses to attach or to inherit a table with a row trigger that has a transition table,
    -- and names the trigger.
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER outbox_capture_refuses_parent AFTER DELETE ON %I.%I'
        ' REFERENCING OLD TABLE AS old_row FOR EACH ROW WHEN (false) EXECUTE FUNCTION outbox.publish_captured()',
        target.nspname, target.relname);
    RETURN types;
END $$;
