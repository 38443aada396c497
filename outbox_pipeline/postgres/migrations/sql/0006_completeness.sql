-- Up to when the recorded events are complete, and which event replaced a quarantined one.

CREATE TABLE outbox.watermark (
    is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    observed_at timestamptz NOT NULL,
    holders     jsonb NOT NULL DEFAULT '{}'
);

COMMENT ON TABLE outbox.watermark IS 'One row: what the last look at open transactions found. No event recorded before all of these times can still appear.';
COMMENT ON COLUMN outbox.watermark.observed_at IS 'The database''s clock before that look. A transaction that was not among the holders inserts after it.';
COMMENT ON COLUMN outbox.watermark.holders IS 'Virtual transactions that could insert, each with a time before which it recorded nothing that is not visible; -infinity when that is not known.';

-- Two statements: whoever takes the lock on outbox.event after the clock was read records later than that.
INSERT INTO outbox.watermark (observed_at) VALUES (clock_timestamp());
UPDATE outbox.watermark SET holders = coalesce((
    SELECT jsonb_object_agg(virtualtransaction, timestamptz '-infinity')
    FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'outbox.event'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND pid IS DISTINCT FROM pg_backend_pid()
), '{}');

ALTER TABLE outbox.quarantined_event
    ADD COLUMN replaced_by uuid,
    DROP CONSTRAINT quarantined_event_status_check,
    ADD CONSTRAINT quarantined_event_status_check CHECK (status IN ('held', 'requeued', 'discarded', 'replaced')),
    ADD CONSTRAINT quarantined_event_names_its_replacement CHECK ((status = 'replaced') = (replaced_by IS NOT NULL));

DROP INDEX outbox.quarantined_event_not_pruned;
CREATE INDEX quarantined_event_not_pruned ON outbox.quarantined_event (resolved_at)
    WHERE status IN ('discarded', 'replaced') AND pruned_at IS NULL;
CREATE UNIQUE INDEX quarantined_event_replacement ON outbox.quarantined_event (replaced_by)
    WHERE replaced_by IS NOT NULL;

COMMENT ON COLUMN outbox.quarantined_event.replaced_by IS 'The corrected event that was published in its place, in the same transaction. Final.';
COMMENT ON COLUMN outbox.quarantined_event.pruned_at IS 'When a discarded or replaced event was deleted from outbox.event. Final.';
COMMENT ON VIEW outbox.event_status IS 'Each event''s state as the ledger knows it: pending, in_flight, parked, processed, held, discarded or replaced.';

-- As before, and a replaced event is as settled as a discarded one.
CREATE OR REPLACE FUNCTION outbox.refuse_delete_of_unprocessed() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    removed int8multirange;
    settled int8multirange;
BEGIN
    SELECT range_agg(int8range(position, position + 1)) INTO removed FROM removed_event;
    IF removed IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(range_agg(positions), '{}') INTO settled FROM (
        SELECT positions FROM outbox.batch WHERE status = 'processed' AND positions && removed
        UNION ALL
        SELECT int8multirange(int8range(position, position + 1)) FROM outbox.quarantined_event
        WHERE status IN ('discarded', 'replaced') AND position >= lower(removed) AND position < upper(removed)
            AND position <@ removed
    ) AS done;
    IF NOT removed <@ settled THEN
        RAISE EXCEPTION 'outbox.event: these positions are not delivered yet and cannot be deleted: %',
            left((removed - settled)::text, 200)
            USING HINT = 'Delete only events of processed batches.', ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

-- As before, and the pipeline may move the watermark.
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
        EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.publish TO %I', role_name);
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
        GRANT EXECUTE ON FUNCTION outbox.advance_positions TO outbox_pipeline;
    END IF;
END $$;

SELECT outbox.grant_roles();
