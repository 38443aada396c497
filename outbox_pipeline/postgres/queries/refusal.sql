-- What may be behind a refusal: asked outside any transaction, of the catalog alone, so no right is needed for it.
SELECT current_user AS role_name,
       pg_is_in_recovery() AS is_standby,
       ARRAY(
           SELECT relname::text FROM pg_class
           WHERE relnamespace = to_regnamespace('outbox') AND row_security_active(oid)
               AND relname IN ('event', 'unclaimed', 'gap', 'batch', 'quarantined_event', 'watermark', 'schema_version',
                                'delivered_elsewhere')
           ORDER BY relname
       ) AS hidden_tables
