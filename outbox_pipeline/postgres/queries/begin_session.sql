-- The first statement of a transaction of ours: everything its meaning depends on, from one list, until its end.
-- All is qualified: as long as this runs, the search path is still that of the role or the database.
-- PostgreSQL before 17 knows no transaction_timeout.
SELECT pg_catalog.count(pg_catalog.set_config(wanted.key, wanted.value, true)) AS setting_count,
       pg_catalog.current_setting('transaction_isolation') AS isolation,
       pg_catalog.current_setting('transaction_read_only') AS is_read_only,
       pg_catalog.current_setting('server_encoding') AS encoding
FROM pg_catalog.jsonb_each_text(CAST(:settings AS pg_catalog.jsonb)) AS wanted (key, value)
WHERE wanted.key OPERATOR(pg_catalog.<>) 'transaction_timeout'
    OR pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL
