-- What delivery needs and the current user may not do.
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
        ('event_status', 'SELECT'), ('schema_version', 'SELECT')
    ) AS list (relation, privilege)
),
missing AS (
    SELECT 0 AS nth, 'USAGE on schema outbox' AS grant_name
    FROM schema WHERE NOT has_schema_privilege(schema.oid, 'USAGE')
    UNION ALL
    SELECT nth, format('%s on outbox.%s', privilege, relation)
    FROM needed JOIN pg_class ON relname = relation JOIN schema ON schema.oid = relnamespace
    WHERE NOT has_table_privilege(pg_class.oid, privilege)
    UNION ALL
    SELECT 100, 'SELECT on sequence outbox.event_position_seq'
    FROM pg_class JOIN schema ON schema.oid = relnamespace
    WHERE relname = 'event_position_seq' AND NOT has_sequence_privilege(pg_class.oid, 'SELECT, USAGE')
    UNION ALL
    SELECT 101, format('EXECUTE on function outbox.%s', proname)
    FROM pg_proc JOIN schema ON schema.oid = pronamespace
    WHERE proname IN ('publish', 'event_differs', 'advance_positions') AND NOT has_function_privilege(pg_proc.oid, 'EXECUTE')
    UNION ALL
    SELECT 102, format('TEMPORARY on database %I', current_database())
    WHERE NOT has_database_privilege(current_database(), 'TEMPORARY')
)
SELECT quote_ident(current_user) AS role_name, to_regrole('outbox_pipeline') IS NOT NULL AS group_exists,
       EXISTS (SELECT FROM schema) AS schema_exists,
       ARRAY(SELECT grant_name FROM missing ORDER BY nth, grant_name) AS missing
