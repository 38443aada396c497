-- Each cut has a number, under which ClickHouse keeps its batch: what a ledger that was set back no longer knows, it finds there.

ALTER TABLE outbox.unclaimed
    ADD COLUMN last_cut_number bigint NOT NULL DEFAULT 0,
    ADD COLUMN witness_floor bigint NOT NULL DEFAULT 0;

-- Batches of an earlier version, and those that a process of one still cuts, get theirs at their next attempt.
ALTER TABLE outbox.batch ADD COLUMN cut_number bigint;

CREATE UNIQUE INDEX batch_cut_number_idx ON outbox.batch (cut_number);

COMMENT ON COLUMN outbox.unclaimed.last_cut_number IS 'The highest number that a batch of this ledger has. Grows in the transaction that gives the number, and never falls.';
COMMENT ON COLUMN outbox.unclaimed.witness_floor IS 'The number under which ClickHouse keeps that this ledger was adopted, 0 for never: numbers below it that are of other batches are of the old instance, one at or above it stops this ledger.';
COMMENT ON COLUMN outbox.batch.cut_number IS 'The number that was given with the batch id, in one transaction and before ClickHouse saw either. Null until the next attempt in batches of an earlier version, and in those that were adopted.';

-- Aurora refuses the function of the WAL unless wal_level is logical; a standby, which refuses it too, is to say so.
CREATE FUNCTION outbox.told_timeline() RETURNS integer
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer;
EXCEPTION
    WHEN object_not_in_prerequisite_state OR feature_not_supported THEN
        IF pg_is_in_recovery() THEN
            RAISE;
        END IF;
        RETURN 0;
END $$;

COMMENT ON FUNCTION outbox.told_timeline IS 'The timeline of this server, 0 where it does not tell one.';
COMMENT ON COLUMN outbox.unclaimed.timeline IS 'Changes when a backup or a standby takes over; delivery then stops until the ledger is adopted. 0 where the server does not tell it: ClickHouse alone is the witness then.';

-- outbox_pipeline also needs EXECUTE on told_timeline.
CREATE OR REPLACE FUNCTION outbox.grant_roles() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_name text;
BEGIN
    -- Here and not in the migration alone: a restore without privileges opens every function to everybody again.
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
    FOREACH role_name IN ARRAY ARRAY['outbox_producer', 'outbox_pipeline'] LOOP
        BEGIN
            IF to_regrole(role_name) IS NULL THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'Role % is missing and this user may not create it', role_name
                    USING HINT = format('CREATE ROLE %I as a superuser, then SELECT outbox.grant_roles().', role_name);
                CONTINUE;
        END;
        EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', role_name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.publish, outbox.event_differs TO %I', role_name);
        -- ON CONFLICT (event_id) needs SELECT there. Without naming the column it would need none, but would swallow a
        -- clash of positions and with it the event.
        EXECUTE format(
            'GRANT SELECT (event_id), INSERT (event_id, event_type, event_date_time, environment, event_context,'
            ' metadata_version, trace_context) ON outbox.event TO %I', role_name);
    END LOOP;
    IF to_regrole('outbox_producer') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION outbox.capture, outbox.release_capture, outbox.capture_refusal,
            outbox.publish_captured TO outbox_producer;
    END IF;
    IF to_regrole('outbox_pipeline') IS NOT NULL THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_pipeline;
        GRANT SELECT ON SEQUENCE outbox.event_position_seq TO outbox_pipeline;
        GRANT DELETE ON outbox.event TO outbox_pipeline;
        GRANT UPDATE ON outbox.unclaimed, outbox.watermark TO outbox_pipeline;
        GRANT INSERT, DELETE ON outbox.gap TO outbox_pipeline;
        GRANT INSERT, UPDATE, DELETE ON outbox.batch TO outbox_pipeline;
        GRANT INSERT, UPDATE ON outbox.quarantined_event TO outbox_pipeline;
        GRANT EXECUTE ON FUNCTION outbox.advance_positions, outbox.told_timeline TO outbox_pipeline;
    END IF;
END $$;

SELECT outbox.grant_roles();
