-- Everything the gap rule and the ledger rest on, in one look: whose cluster this is, what the sequence has drawn, what the table is.
-- Of an unclaimed set of many stretches the first ones and the open end: what one cut looks at. The newest events are at
-- the open end, so they do not wait for all the others to be looked at.
WITH first_stretch AS MATERIALIZED (
    SELECT unnest(positions) AS stretch FROM outbox.unclaimed LIMIT :max_stretches
),
open_end AS (
    SELECT stretch FROM (SELECT unnest(positions) AS stretch FROM outbox.unclaimed) AS every WHERE upper_inf(stretch)
)
SELECT (SELECT range_agg(stretch)::text
        FROM (SELECT stretch FROM first_stretch UNION ALL SELECT stretch FROM open_end) AS looked_at) AS unclaimed,
       (SELECT count(*) FROM first_stretch) AS stretch_count,
       unclaimed.ledger_id,
       unclaimed.last_cut_number,
       unclaimed.witness_floor,
       unclaimed.begun_on,
       ARRAY(SELECT cut_number FROM outbox.batch WHERE status <> 'processed' AND cut_number IS NOT NULL) AS open_numbers,
       EXISTS (SELECT FROM outbox.batch WHERE former_positions IS NOT NULL AND former_positions && unclaimed.positions)
           AS has_former,
       EXISTS (SELECT FROM outbox.delivered_elsewhere) AS has_elsewhere,
       unclaimed.system_identifier = control.system_identifier
           AND unclaimed.database_oid = database.oid
           -- Where the server does not tell its timeline, or did not when the ledger was made, ClickHouse is the witness.
           AND (unclaimed.timeline = server.timeline OR 0 IN (unclaimed.timeline, server.timeline)) AS is_own_cluster,
       unclaimed.system_identifier = control.system_identifier AND unclaimed.database_oid = database.oid AS is_own_database,
       has_sequence_privilege('outbox.event_position_seq', 'USAGE, SELECT') AS can_read_sequence,
       -- Without the right, versions before 17 raise, and later ones have NULL.
       CASE WHEN has_sequence_privilege('outbox.event_position_seq', 'USAGE, SELECT')
           THEN coalesce(pg_sequence_last_value('outbox.event_position_seq'::regclass), 0) ELSE 0 END AS last_drawn,
       coalesce((SELECT max(last_position) FROM outbox.batch), 0) AS last_known,
       (SELECT context_bytes / event_count FROM outbox.batch ORDER BY last_position DESC LIMIT 1) AS bytes_an_event,
       (SELECT seqcache FROM pg_sequence WHERE seqrelid = 'outbox.event_position_seq'::regclass) AS sequence_cache,
       (SELECT attidentity FROM pg_attribute
        WHERE attrelid = 'outbox.event'::regclass AND attname = 'position') AS identity_kind,
       (SELECT relkind FROM pg_class WHERE oid = 'outbox.event'::regclass) AS table_kind,
       EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'outbox.event'::regclass) AS has_children,
       EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = 'outbox.event'::regclass) AS is_subscribed,
       current_user AS role_name,
       -- Of unclaimed, batch and delivered_elsewhere, which this statement reads, PostgreSQL raises instead.
       ARRAY(
           SELECT relname::text FROM pg_class
           WHERE relnamespace = 'outbox'::regnamespace AND row_security_active(oid)
               AND relname IN ('event', 'unclaimed', 'gap', 'batch', 'quarantined_event', 'watermark', 'schema_version',
                                'delivered_elsewhere')
           ORDER BY relname
       ) AS hidden_tables
FROM outbox.unclaimed, pg_control_system() AS control, outbox.told_timeline() AS server (timeline),
     (SELECT oid FROM pg_database WHERE datname = current_database()) AS database
