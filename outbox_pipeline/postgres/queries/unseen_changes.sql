-- How many tables are captured, and what lets their changes pass unseen, each with the statement that ends it and who may
-- run it; one row without a kind where nothing does.
-- Looks things up by catalog alone, which everybody may read, so no right on the schema or the tables is needed.
WITH function AS (
    SELECT pg_proc.oid FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE nspname = 'outbox' AND proname = 'publish_captured'
),
-- Without the row trigger of each captured table, which never fires.
made AS (
    SELECT pg_class.oid AS table_oid, relnamespace, relname, relispartition,
           format('%I.%I', nspname, relname) AS table_name, tgname, tgtype, tgenabled,
           regexp_match(
               pg_get_triggerdef(pg_trigger.oid),
               'publish_captured\((E?''([^'']|'''')*)_(inserted|updated|deleted|truncated)'','
               ' (E?''([^'']|'''')*''), ''(\d+)'', (E?''([^'']|'''')*''), (E?''([^'']|'''')*'')\)$'
           ) AS arguments
    FROM pg_trigger
    JOIN function ON function.oid = tgfoid
    JOIN pg_class ON pg_class.oid = tgrelid
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE tgtype & 1 = 0
),
captured AS (
    SELECT DISTINCT ON (table_oid) table_oid, relnamespace, relname, relispartition, table_name,
           -- As it was given when the table was captured; the defaults are left out.
           arguments[1] || '''' AS event_type,
           concat(
               ', event_type => ' || arguments[1] || '''',
               ', environment => ' || nullif(arguments[4], '''development'''),
               ', columns => ' || nullif(arguments[7], '''{}'''),
               ', except_columns => ' || nullif(arguments[9], '''{}'''),
               ', metadata_version => ' || nullif(arguments[6], '1')
           ) AS arguments
    FROM made ORDER BY table_oid, tgname
),
-- The bits of pg_trigger.tgtype.
wanted (bit, event) AS (VALUES (4, 'INSERT'), (16, 'UPDATE'), (8, 'DELETE'), (32, 'TRUNCATE')),
miscounted AS (
    SELECT captured.table_oid, event, CASE WHEN count(tgname) = 0 THEN 'missing' ELSE 'doubled' END AS kind
    FROM captured CROSS JOIN wanted
    LEFT JOIN made ON made.table_oid = captured.table_oid AND tgtype & bit > 0
    GROUP BY captured.table_oid, event HAVING count(tgname) <> 1
),
inherited AS (
    SELECT inhrelid AS child_oid, inhparent AS parent_oid,
           format('%I.%I', child_schema.nspname, child.relname) AS child,
           format('%I.%I', parent_schema.nspname, parent.relname) AS parent
    FROM pg_inherits
    JOIN pg_class AS child ON child.oid = inhrelid
    JOIN pg_namespace AS child_schema ON child_schema.oid = child.relnamespace
    JOIN pg_class AS parent ON parent.oid = inhparent
    JOIN pg_namespace AS parent_schema ON parent_schema.oid = parent.relnamespace
),
replica_settings (remedy) AS (
    SELECT CASE
               WHEN setrole = 0 AND setdatabase = 0 THEN 'ALTER ROLE ALL RESET session_replication_role'
               WHEN setrole = 0 THEN format('ALTER DATABASE %I RESET session_replication_role', current_database())
               WHEN setdatabase = 0
                   THEN format('ALTER ROLE %I RESET session_replication_role', pg_get_userbyid(setrole))
               ELSE format('ALTER ROLE %I IN DATABASE %I RESET session_replication_role',
                           pg_get_userbyid(setrole), current_database())
           END
    FROM pg_db_role_setting CROSS JOIN unnest(setconfig) AS setting
    WHERE setting = 'session_replication_role=replica'
        AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    UNION ALL
    SELECT 'ALTER SYSTEM RESET session_replication_role'
    FROM pg_settings
    WHERE name = 'session_replication_role' AND setting = 'replica'
        AND source IN ('configuration file', 'command line', 'environment variable')
),
found (nth, kind, table_name, detail, remedy) AS (
    SELECT 1, 'disabled', table_name, string_agg(quote_ident(tgname), ', ' ORDER BY tgname),
           format('ALTER TABLE %s %s; as its owner', table_name,
                  string_agg(format('ENABLE TRIGGER %I', tgname), ', ' ORDER BY tgname))
    FROM made WHERE tgenabled IN ('D', 'R') GROUP BY table_name
    UNION ALL
    SELECT 2, kind, table_name, string_agg(event, ', ' ORDER BY event),
           format('SELECT outbox.capture(%L%s); as its owner', table_name, arguments)
    FROM captured JOIN miscounted USING (table_oid)
    GROUP BY kind, table_name, arguments
    UNION ALL
    SELECT 3, CASE WHEN relispartition THEN 'partition' ELSE 'child' END, table_name, parent,
           CASE WHEN relispartition THEN format('ALTER TABLE %s DETACH PARTITION %s; as its owner', parent, child)
                ELSE format('ALTER TABLE %s NO INHERIT %s; as its owner', child, parent) END
    FROM captured JOIN inherited ON child_oid = table_oid
    UNION ALL
    SELECT 4, 'parent', table_name, child, format('ALTER TABLE %s NO INHERIT %s; as its owner', child, parent)
    FROM captured JOIN inherited ON parent_oid = table_oid
    UNION ALL
    SELECT 5, 'replica', string_agg(DISTINCT table_name, ', '), NULL, remedy || '; as a superuser'
    FROM made CROSS JOIN replica_settings WHERE tgenabled <> 'A' GROUP BY remedy
    UNION ALL
    SELECT 6, 'subscription', table_name, string_agg(quote_ident(subname), ', ' ORDER BY subname), NULL
    FROM captured
    JOIN pg_subscription_rel ON srrelid = table_oid
    JOIN pg_subscription ON pg_subscription.oid = srsubid
    GROUP BY table_name
    UNION ALL
    -- The events' name is still that of another table, which is there and is not captured.
    SELECT 7, 'replaced', table_name, format('%I.%I', nspname, other.relname),
           format('SELECT outbox.capture(%L%s); as its owner', format('%I.%I', nspname, other.relname), arguments)
    FROM captured
    JOIN pg_class AS other
        ON other.relnamespace = captured.relnamespace AND other.relkind IN ('r', 'p')
        AND quote_literal(other.relname) = captured.event_type AND other.oid <> table_oid
    JOIN pg_namespace ON pg_namespace.oid = other.relnamespace
    WHERE other.oid NOT IN (SELECT table_oid FROM captured)
)
SELECT table_count, kind, table_name, detail, remedy
FROM (SELECT count(*) AS table_count FROM captured) AS all_captured LEFT JOIN found ON true
ORDER BY nth, table_name, detail
