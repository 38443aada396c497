-- What retention needs: a pruned batch can never be sent again, and what may be pruned is found without reading the ledger.

ALTER TABLE outbox.batch
    ADD CONSTRAINT batch_stays_processed_when_pruned CHECK (pruned_at IS NULL OR status = 'processed');

ALTER TABLE outbox.quarantined_event
    ADD COLUMN pruned_at timestamptz,
    ADD CONSTRAINT quarantined_event_is_pruned_when_discarded CHECK (pruned_at IS NULL OR status <> 'held');

CREATE INDEX batch_not_pruned ON outbox.batch (processed_at, batch_id) INCLUDE (oldest_recorded_at)
    WHERE status = 'processed' AND pruned_at IS NULL;
CREATE INDEX quarantined_event_not_pruned ON outbox.quarantined_event (resolved_at)
    WHERE status = 'discarded' AND pruned_at IS NULL;

COMMENT ON COLUMN outbox.quarantined_event.pruned_at IS 'When a discarded event was deleted from outbox.event. Final.';

-- As before, but discarded events are looked up by position: deleting a batch must not read the whole quarantine.
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
        WHERE status = 'discarded' AND position >= lower(removed) AND position < upper(removed)
            AND position <@ removed
    ) AS done;
    IF NOT removed <@ settled THEN
        RAISE EXCEPTION 'outbox.event: these positions are not delivered yet and cannot be deleted: %',
            left((removed - settled)::text, 200)
            USING HINT = 'Delete only events of processed batches.', ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
