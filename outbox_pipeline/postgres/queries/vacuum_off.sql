-- Where autovacuum does not work: server settings it needs that are off, and tables of the outbox it may not touch.
SELECT name || ' = off' AS found FROM pg_settings WHERE name IN ('autovacuum', 'track_counts') AND setting = 'off'
UNION ALL
SELECT pg_namespace.nspname || '.' || pg_class.relname
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = 'outbox' AND pg_class.relkind IN ('r', 'p')
    AND EXISTS (SELECT FROM unnest(pg_class.reloptions) AS option
                WHERE option ~ '^autovacuum_enabled=(off|false|no|0)$')
ORDER BY found
