-- What other instances of this ledger delivered and this one does not have: an application that repeats a lost event under its
-- own id must not have it delivered twice.

CREATE TABLE outbox.delivered_elsewhere (
    event_id   uuid PRIMARY KEY,
    batch_id   uuid NOT NULL,
    position   bigint NOT NULL,
    adopted_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX delivered_elsewhere_adopted_at ON outbox.delivered_elsewhere (adopted_at, event_id);

COMMENT ON TABLE outbox.delivered_elsewhere IS 'Ids of events that ClickHouse has from another instance of this ledger and that were not here when it was adopted. An event that is published under one of them is held instead of being delivered once more.';
COMMENT ON COLUMN outbox.delivered_elsewhere.batch_id IS 'The batch under whose id its row stands in ClickHouse; the ledger need not have it.';
COMMENT ON COLUMN outbox.delivered_elsewhere.position IS 'The position of that row; another event may have it here.';
COMMENT ON COLUMN outbox.delivered_elsewhere.adopted_at IS 'When the ledger was adopted. A prune takes ids that are older than the retention and of which no event is here.';

-- An event row never changes, so one that stands at a position of another event is written again at a new one. By the names
-- that the columns have then: a later migration may have added some.
CREATE FUNCTION outbox.move_events(moved bigint[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept text;
    written bigint;
BEGIN
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO kept
    FROM pg_attribute
    WHERE attrelid = 'outbox.event'::regclass AND attnum > 0 AND NOT attisdropped
        AND attidentity = '' AND attgenerated = '';
    EXECUTE format(
        'WITH gone AS (DELETE FROM outbox.event WHERE position = ANY ($1) RETURNING *),'
        ' again AS (INSERT INTO outbox.event (%1$s) SELECT %1$s FROM gone ORDER BY position RETURNING 1)'
        ' SELECT count(*) FROM again', kept)
    INTO written USING moved;
    RETURN written;
END $$;

COMMENT ON FUNCTION outbox.move_events IS 'Give events at positions of processed batches, or of events that were given up, new positions; all else of them stays. For events that hide there since the sequence went back. Returns how many.';

-- outbox_pipeline also needs to write delivered_elsewhere and to call move_events.
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
        GRANT INSERT, DELETE ON outbox.gap, outbox.delivered_elsewhere TO outbox_pipeline;
        GRANT INSERT, UPDATE, DELETE ON outbox.batch TO outbox_pipeline;
        GRANT INSERT, UPDATE ON outbox.quarantined_event TO outbox_pipeline;
        GRANT EXECUTE ON FUNCTION outbox.advance_positions, outbox.told_timeline, outbox.move_events
            TO outbox_pipeline;
    END IF;
END $$;

SELECT outbox.grant_roles();
