-- What delivery needs and the current user may not do, and the statements that give it, in their order, each with who may
-- run it: no more of them than are needed.
-- Looks things up by catalog, so that a user without USAGE on the schema is told that and gets no error.
WITH schema AS (
    SELECT oid FROM pg_namespace WHERE nspname = 'outbox'
),
needed (nth, relation, privilege) AS (
    SELECT row_number() OVER (), relation, privilege
    FROM (VALUES
        ('event', 'SELECT'), ('event', 'DELETE'),
        ('unclaimed', 'SELECT'), ('unclaimed', 'UPDATE'),
        ('watermark', 'SELECT'), ('watermark', 'UPDATE'),
        ('gap', 'SELECT'), ('gap', 'INSERT'), ('gap', 'DELETE'),
        ('batch', 'SELECT'), ('batch', 'INSERT'), ('batch', 'UPDATE'), ('batch', 'DELETE'),
        ('quarantined_event', 'SELECT'), ('quarantined_event', 'INSERT'), ('quarantined_event', 'UPDATE'),
        ('delivered_elsewhere', 'SELECT'), ('delivered_elsewhere', 'INSERT'), ('delivered_elsewhere', 'DELETE'),
        ('event_status', 'SELECT'), ('schema_version', 'SELECT')
    ) AS list (relation, privilege)
),
pipeline AS (
    SELECT to_regrole('outbox_pipeline') AS oid
),
missing AS (
    SELECT 0 AS nth, 'USAGE on schema outbox' AS grant_name,
           coalesce(has_schema_privilege(pipeline.oid, schema.oid, 'USAGE'), false) AS is_granted
    FROM pipeline, schema WHERE NOT has_schema_privilege(schema.oid, 'USAGE')
    UNION ALL
    SELECT nth, format('%s on outbox.%s', privilege, relation),
           coalesce(has_table_privilege(pipeline.oid, pg_class.oid, privilege), false)
    FROM pipeline, needed JOIN pg_class ON relname = relation JOIN schema ON schema.oid = relnamespace
    WHERE NOT has_table_privilege(pg_class.oid, privilege)
    UNION ALL
    SELECT 100, 'SELECT on sequence outbox.event_position_seq',
           coalesce(has_sequence_privilege(pipeline.oid, pg_class.oid, 'SELECT, USAGE'), false)
    FROM pipeline, pg_class JOIN schema ON schema.oid = relnamespace
    WHERE relname = 'event_position_seq' AND NOT has_sequence_privilege(pg_class.oid, 'SELECT, USAGE')
    UNION ALL
    SELECT 101, format('EXECUTE on function %s', pg_proc.oid::regprocedure),
           coalesce(has_function_privilege(pipeline.oid, pg_proc.oid, 'EXECUTE'), false)
    FROM pipeline, pg_proc JOIN schema ON schema.oid = pronamespace
    WHERE proname IN ('publish', 'event_differs', 'advance_positions', 'told_timeline', 'move_events')
        -- The second form of publish is for producers alone.
        AND NOT (proname = 'publish' AND proargtypes[1] = 'jsonb'::regtype)
        AND NOT has_function_privilege(pg_proc.oid, 'EXECUTE')
),
missing_temporary AS (
    SELECT format('TEMPORARY on database %I', datname) AS grant_name,
           format('GRANT TEMPORARY ON DATABASE %I TO %I; as %I', datname, current_user, pg_get_userbyid(datdba)) AS remedy
    FROM pg_database
    WHERE datname = current_database() AND NOT has_database_privilege(oid, 'TEMPORARY')
),
granting AS (
    SELECT format('SELECT outbox.grant_roles(); as %I', pg_get_userbyid(proowner)) AS remedy
    FROM pg_proc JOIN schema ON schema.oid = pronamespace
    WHERE proname = 'grant_roles'
),
membership AS (
    SELECT current_setting('server_version_num')::integer >= 160000 AS inherits_by_grant, rolinherit,
           coalesce(pg_has_role((SELECT oid FROM pg_roles WHERE rolname = 'outbox_pipeline'), 'USAGE'), false) AS inherits,
           coalesce(pg_has_role((SELECT oid FROM pg_roles WHERE rolname = 'outbox_pipeline'), 'MEMBER'), false) AS is_member
    FROM pg_roles WHERE rolname = current_user
),
remedies AS (
    SELECT 0 AS nth, 'CREATE ROLE outbox_pipeline; as a superuser' AS remedy
    WHERE to_regrole('outbox_pipeline') IS NULL AND EXISTS (SELECT FROM missing)
    UNION ALL
    SELECT 1, remedy FROM granting WHERE EXISTS (SELECT FROM missing WHERE NOT is_granted)
    UNION ALL
    SELECT 2, format('GRANT outbox_pipeline TO %I%s; as a superuser', current_user,
                     CASE WHEN inherits_by_grant THEN ' WITH INHERIT TRUE' ELSE '' END)
    FROM membership WHERE NOT inherits AND (inherits_by_grant OR NOT is_member) AND EXISTS (SELECT FROM missing)
    UNION ALL
    SELECT 3, format('ALTER ROLE %I INHERIT; as a superuser', current_user)
    FROM membership WHERE NOT rolinherit AND NOT inherits_by_grant AND EXISTS (SELECT FROM missing)
    UNION ALL
    SELECT 4, remedy FROM missing_temporary
)
SELECT quote_ident(current_user) AS role_name,
       EXISTS (SELECT FROM schema) AS schema_exists,
       ARRAY(SELECT grant_name FROM missing ORDER BY nth, grant_name)
           || ARRAY(SELECT grant_name FROM missing_temporary) AS missing,
       ARRAY(SELECT remedy FROM remedies ORDER BY nth) AS remedies
