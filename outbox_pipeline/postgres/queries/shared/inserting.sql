-- The locks of transactions that could still fill a position: every insert takes this lock before it draws one and keeps it
-- until its transaction ends; readers, dumps and idle sessions have another or none.
FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'outbox.event'::regclass
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
