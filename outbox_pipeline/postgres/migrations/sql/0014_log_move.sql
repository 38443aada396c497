-- The event log can be moved to a new table while events are delivered; only at the end no attempt on a batch begins.

CREATE TABLE outbox.log_move (
    is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    run         bigint NOT NULL DEFAULT 0 CHECK (run >= 0),
    exchange_at timestamptz
);

COMMENT ON TABLE outbox.log_move IS 'One row: how often ''outbox log move'' has begun, and whether it is exchanging the tables.';
COMMENT ON COLUMN outbox.log_move.run IS 'Grows by one when the command begins or goes on, and never falls. Names its table in ClickHouse, so that a statement of an earlier run that comes late finds no table.';
COMMENT ON COLUMN outbox.log_move.exchange_at IS 'Since when the tables are being exchanged: no attempt on a batch begins until the command that did this, or the next one, knows which table has which name. Null otherwise.';

INSERT INTO outbox.log_move DEFAULT VALUES;

-- Shared by every transaction in which an attempt begins, a batch is cut or adopted, or its events are pruned; the last
-- pass of a move has it alone, and then sees the leases that are held. The row is read by a statement behind the lock, so
-- it shows what was committed before that.
CREATE FUNCTION outbox.wait_for_log_move() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(8031453476610927725) THEN
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(8031453476610927725);
        EXCEPTION
            WHEN lock_not_available THEN
                RAISE EXCEPTION 'The event log gets a new table (outbox log move) and deliveries wait for it: they go on by themselves'
                    USING ERRCODE = 'object_in_use';
        END;
    END IF;
    IF EXISTS (SELECT FROM outbox.log_move WHERE exchange_at IS NOT NULL) THEN
        RAISE EXCEPTION 'The event log and its new table are being exchanged, so nothing is delivered now: if no ''outbox log move'' is at work any more, run it again, and it goes on'
            USING ERRCODE = 'object_in_use';
    END IF;
    RETURN NEW;
END $$;

COMMENT ON FUNCTION outbox.wait_for_log_move IS 'Let no attempt begin while ''outbox log move'' makes its last pass or exchanges the tables.';

CREATE TRIGGER batch_waits_for_log_move_on_insert BEFORE INSERT ON outbox.batch
    FOR EACH ROW EXECUTE FUNCTION outbox.wait_for_log_move();

CREATE TRIGGER batch_waits_for_log_move BEFORE UPDATE OF status, attempt, holder, pruned_at ON outbox.batch
    FOR EACH ROW
    WHEN (
        (NEW.status = 'delivering' AND (OLD.status, OLD.attempt, OLD.holder) IS DISTINCT FROM (NEW.status, NEW.attempt, NEW.holder))
        OR OLD.pruned_at IS DISTINCT FROM NEW.pruned_at
    )
    EXECUTE FUNCTION outbox.wait_for_log_move();

SELECT outbox.grant_roles();
