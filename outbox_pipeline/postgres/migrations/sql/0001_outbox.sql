-- The outbox and its ledger.
-- Events are only ever inserted; which of them are delivered is known by sets of positions in the other tables.
-- Each position is in exactly one place: unclaimed, a gap, a batch, quarantine, or known never to have existed.
-- Runs as it stands in psql or any migration tool; needs PostgreSQL 15 or later.

CREATE TABLE outbox.event (
    position        bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    event_id        uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    event_type      text NOT NULL,
    event_date_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    environment     text NOT NULL,
    event_context   json NOT NULL,
    metadata_version bigint NOT NULL DEFAULT 1,
    recorded_at     timestamptz NOT NULL DEFAULT clock_timestamp()
        CONSTRAINT event_recorded_at_is_a_plain_time
        CHECK (recorded_at >= '2000-01-01 00:00:00+00' AND recorded_at < '2200-01-01 00:00:00+00'),
    trace_context   text,
    context_bytes   integer NOT NULL GENERATED ALWAYS AS (octet_length(event_context::text)) STORED
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);

COMMENT ON TABLE outbox.event IS 'Published events. Insert only: a row never changes, and goes only after its batch was processed.';
COMMENT ON COLUMN outbox.event.position IS 'Drawn at insert, unique, never reused; not commit order. The ledger speaks of events by it.';
COMMENT ON COLUMN outbox.event.event_id IS 'The producer''s idempotency key; the identity of the event in ClickHouse.';
COMMENT ON COLUMN outbox.event.event_context IS 'The event itself, kept byte for byte: json, not jsonb.';
COMMENT ON COLUMN outbox.event.recorded_at IS 'The database''s clock at insert. Its day in UTC is the event''s Dagster partition.';
COMMENT ON COLUMN outbox.event.context_bytes IS 'Bytes of the context as text; what a batch''s size limit counts.';

CREATE TABLE outbox.unclaimed (
    is_only_row       boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    positions         int8multirange NOT NULL,
    system_identifier bigint NOT NULL,
    database_oid      oid NOT NULL,
    timeline          integer NOT NULL
);

COMMENT ON TABLE outbox.unclaimed IS 'One row: the positions still to be put into batches, and the cluster this ledger belongs to.';
COMMENT ON COLUMN outbox.unclaimed.positions IS 'Starts as every position there can be. A cut takes positions out; settled gaps, put-backs and requeues add them.';
COMMENT ON COLUMN outbox.unclaimed.timeline IS 'Changes when a backup or a standby takes over. Delivery then stops: the other life may have delivered events too.';

CREATE TABLE outbox.gap (
    gap_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    positions   int8multirange NOT NULL CHECK (NOT isempty(positions)),
    holders     text[] NOT NULL,
    observed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE outbox.gap IS 'Positions that a cut passed over because no event was visible there yet. Rows are inserted and deleted, never updated.';
COMMENT ON COLUMN outbox.gap.holders IS 'Virtual transactions that could still fill the gap. Once all are gone, what is still not visible never existed.';

CREATE TABLE outbox.batch (
    batch_id        uuid PRIMARY KEY,
    positions       int8multirange NOT NULL,
    first_position  bigint NOT NULL,
    last_position   bigint NOT NULL,
    recorded_on     date NOT NULL,
    event_count     integer NOT NULL CHECK (event_count > 0),
    context_bytes   bigint NOT NULL,
    oldest_recorded_at timestamptz NOT NULL,
    status          text NOT NULL DEFAULT 'cut'
        CHECK (status IN ('cut', 'requested', 'delivering', 'failed', 'parked', 'processed')),
    attempt         integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    failures        integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    generation      integer NOT NULL DEFAULT 0 CHECK (generation >= 0),
    holder          text,
    lease_until     timestamptz,
    next_attempt_at timestamptz,
    run_id          text,
    rejected        jsonb,
    proof           jsonb,
    accepted_count  integer,
    rejected_count  integer,
    last_error      text,
    last_error_kind text,
    cut_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    requested_at    timestamptz,
    started_at      timestamptz,
    failed_at       timestamptz,
    processed_at    timestamptz,
    CONSTRAINT batch_positions_belong_to_one_batch EXCLUDE USING gist (positions WITH &&),
    CONSTRAINT batch_has_events CHECK (processed_at IS NOT NULL OR NOT isempty(positions)),
    CONSTRAINT batch_is_leased_while_delivering
        CHECK ((status = 'delivering') = (holder IS NOT NULL)),
    CONSTRAINT batch_lease_ends CHECK (status NOT IN ('requested', 'delivering') OR lease_until IS NOT NULL),
    CONSTRAINT batch_is_frozen_whole CHECK ((rejected IS NULL) = (proof IS NULL)),
    CONSTRAINT batch_is_processed_on_proof
        CHECK (status <> 'processed' OR (proof IS NOT NULL AND processed_at IS NOT NULL AND accepted_count IS NOT NULL))
);

CREATE INDEX batch_open ON outbox.batch (status, cut_at) WHERE status <> 'processed';
CREATE INDEX batch_last_position ON outbox.batch (last_position);
CREATE INDEX batch_recorded_on ON outbox.batch (recorded_on);
CREATE INDEX batch_processed_at ON outbox.batch (processed_at);

COMMENT ON TABLE outbox.batch IS 'The ledger: one row a batch, the unit of delivery. Leases and heartbeats stay out of the indexes.';
COMMENT ON COLUMN outbox.batch.positions IS 'Set when the batch is cut. Marking takes rejected events out; nothing else changes it.';
COMMENT ON COLUMN outbox.batch.first_position IS 'Lowest position when cut; final. Bounds every look into ClickHouse.';
COMMENT ON COLUMN outbox.batch.last_position IS 'Highest position when cut; final.';
COMMENT ON COLUMN outbox.batch.recorded_on IS 'UTC day of all its events, the Dagster partition; final.';
COMMENT ON COLUMN outbox.batch.attempt IS 'Drawn when a run is requested or takes the batch over. Every write of a run names it and is refused when it is no longer the current one.';
COMMENT ON COLUMN outbox.batch.failures IS 'Attempts since the last success or resume that ended in an error or in silence; at the limit the batch is parked.';
COMMENT ON COLUMN outbox.batch.generation IS 'Which sending of the content counts in ClickHouse. Raised only when ClickHouse took one and the proof still failed, or on a reload.';
COMMENT ON COLUMN outbox.batch.holder IS 'The process that holds the lease, while delivering.';
COMMENT ON COLUMN outbox.batch.lease_until IS 'When a silent request or run is given up; moved on by heartbeats.';
COMMENT ON COLUMN outbox.batch.failed_at IS 'When an attempt last ended in an error. Newer than every processed_at and transient: one batch probes.';
COMMENT ON COLUMN outbox.batch.rejected IS 'Positions refused by validation with their reasons, frozen before the first insert; emptied into quarantined_event by marking.';
COMMENT ON COLUMN outbox.batch.proof IS 'What ClickHouse must show for this batch: counts and checksums, frozen together with the rejected positions.';

CREATE TABLE outbox.quarantined_event (
    quarantine_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    position       bigint NOT NULL,
    event_id       uuid NOT NULL,
    event_type     text NOT NULL,
    batch_id       uuid NOT NULL REFERENCES outbox.batch (batch_id),
    reasons        text[] NOT NULL CHECK (cardinality(reasons) > 0),
    status         text NOT NULL DEFAULT 'held' CHECK (status IN ('held', 'requeued', 'discarded')),
    quarantined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at    timestamptz,
    note           text,
    CONSTRAINT quarantined_event_is_resolved_once CHECK ((status = 'held') = (resolved_at IS NULL))
);

CREATE UNIQUE INDEX quarantined_event_held_once ON outbox.quarantined_event (position) WHERE status <> 'requeued';
CREATE INDEX quarantined_event_batch ON outbox.quarantined_event (batch_id);

COMMENT ON TABLE outbox.quarantined_event IS 'Events that failed validation, with all their reasons. Held until somebody requeues or discards them.';

INSERT INTO outbox.unclaimed (positions, system_identifier, database_oid, timeline)
SELECT '{[1,)}', system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()), 0
FROM pg_control_system();

-- Not every server tells its timeline: Aurora refuses these functions.
DO $$
BEGIN
    UPDATE outbox.unclaimed
    SET timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer;
EXCEPTION WHEN object_not_in_prerequisite_state OR feature_not_supported THEN
    NULL;
END $$;

-- What an event row must never suffer. Statement triggers: they cost one call however many rows there are.

CREATE FUNCTION outbox.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'outbox.event is insert-only: % is refused', TG_OP
        USING HINT = 'Publish another event that corrects this one.', ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER event_is_never_updated BEFORE UPDATE ON outbox.event
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change();
CREATE TRIGGER event_is_never_truncated BEFORE TRUNCATE ON outbox.event
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change();

CREATE FUNCTION outbox.refuse_delete_of_unprocessed() RETURNS trigger
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
        WHERE status = 'discarded' AND position <@ removed
    ) AS done;
    IF NOT removed <@ settled THEN
        RAISE EXCEPTION 'outbox.event: these positions are not delivered yet and cannot be deleted: %',
            left((removed - settled)::text, 200)
            USING HINT = 'Delete only events of processed batches.', ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER event_is_deleted_only_when_processed AFTER DELETE ON outbox.event
    REFERENCING OLD TABLE AS removed_event
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_delete_of_unprocessed();

-- Publishing from any language, in the caller's transaction.

CREATE FUNCTION outbox.publish(
    event_type text, event_context json, environment text DEFAULT 'development', metadata_version bigint DEFAULT 1,
    event_date_time timestamptz DEFAULT NULL, event_id uuid DEFAULT NULL, trace_context text DEFAULT NULL
) RETURNS uuid LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH id AS (SELECT coalesce(publish.event_id, gen_random_uuid()) AS value),
    written AS (
        INSERT INTO outbox.event
            (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
        SELECT id.value, publish.event_type, coalesce(publish.event_date_time, clock_timestamp()), publish.environment,
               publish.event_context, publish.metadata_version, publish.trace_context
        FROM id
        ON CONFLICT ON CONSTRAINT event_event_id_key DO NOTHING
    )
    SELECT value FROM id
$$;

COMMENT ON FUNCTION outbox.publish IS 'Publish one event in the caller''s transaction; a repeated event_id changes nothing. Returns the event_id.';

CREATE VIEW outbox.event_status AS
SELECT event.position, event.event_id, event.event_type, event.recorded_at,
       CASE WHEN quarantine.status IS NOT NULL THEN quarantine.status
            WHEN batch.status = 'processed' THEN 'processed'
            WHEN batch.status = 'parked' THEN 'parked'
            WHEN batch.batch_id IS NOT NULL THEN 'in_flight'
            ELSE 'pending' END AS status,
       coalesce(batch.batch_id, quarantine.batch_id) AS batch_id,
       batch.processed_at, batch.run_id, quarantine.reasons
FROM outbox.event
LEFT JOIN outbox.quarantined_event AS quarantine
    ON quarantine.position = event.position AND quarantine.status <> 'requeued'
LEFT JOIN LATERAL (
    SELECT batch_id, status, processed_at, run_id FROM outbox.batch WHERE batch.positions @> event.position
) AS batch ON true;

COMMENT ON VIEW outbox.event_status IS 'Each event''s state as the ledger knows it: pending, in_flight, parked, processed, held or discarded.';
