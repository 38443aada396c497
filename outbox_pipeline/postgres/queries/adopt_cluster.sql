-- From now on the ledger belongs to the cluster it stands in.
UPDATE outbox.unclaimed
SET system_identifier = control.system_identifier,
    database_oid = (SELECT oid FROM pg_database WHERE datname = current_database()),
    timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
FROM pg_control_system() AS control
