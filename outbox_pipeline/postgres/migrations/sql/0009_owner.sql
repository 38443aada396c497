-- The ledger's name: by it a table in ClickHouse knows whose it is.

ALTER TABLE outbox.unclaimed ADD COLUMN ledger_id uuid NOT NULL DEFAULT gen_random_uuid();

COMMENT ON COLUMN outbox.unclaimed.ledger_id IS 'Identity of this ledger, drawn once when it was made and never changed. Backups, standbys and clones carry it on.';
