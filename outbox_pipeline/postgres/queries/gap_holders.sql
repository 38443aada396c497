-- The transactions that keep gaps open, longest first: who they are, and which command on which table they ran last.
-- No more of a statement than that: its text may quote an event. What a role may not see of other sessions is null.
WITH held AS (
    SELECT holder, min(observed_at) AS observed_at, count(*) AS gap_count
    FROM outbox.gap CROSS JOIN LATERAL unnest(holders) AS holder
    GROUP BY holder
),
locking AS (
    SELECT DISTINCT virtualtransaction, pid
    {{ inserting }}
),
prepared AS (
    SELECT pg_locks.virtualtransaction, pg_prepared_xacts.gid, pg_prepared_xacts.owner, pg_prepared_xacts.prepared
    FROM pg_prepared_xacts
    JOIN pg_locks ON pg_locks.locktype = 'transactionid' AND pg_locks.transactionid = pg_prepared_xacts.transaction
    WHERE pg_locks.pid IS NULL
)
SELECT held.holder,
       locking.pid,
       prepared.gid,
       coalesce(session.usename, prepared.owner)::text AS user_name,
       nullif(session.application_name, '') AS application,
       host(session.client_addr) AS client,
       session.state,
       substring(session.query FROM
           '(?i)^\s*(insert\s+into\s+[\w."]+|update\s+[\w."]+|delete\s+from\s+[\w."]+|merge\s+into\s+[\w."]+|[a-z]+)')
           AS statement,
       held.gap_count,
       abs(extract(epoch FROM clock_timestamp() - coalesce(session.xact_start, prepared.prepared, held.observed_at)))
           ::float AS age_seconds
FROM held
JOIN locking ON locking.virtualtransaction = held.holder
LEFT JOIN prepared ON prepared.virtualtransaction = held.holder
LEFT JOIN pg_stat_activity AS session ON session.pid = locking.pid
ORDER BY age_seconds DESC
LIMIT 100
