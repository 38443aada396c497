-- From now on the ledger belongs to the cluster it stands in, and goes on above the number of its adoption.
UPDATE outbox.unclaimed
SET system_identifier = control.system_identifier,
    database_oid = (SELECT oid FROM pg_database WHERE datname = current_database()),
    timeline = outbox.told_timeline(),
    last_cut_number = :floor,
    witness_floor = :floor
FROM pg_control_system() AS control
