-- Pending events, up to :limit of them, as pending_sum; each of :max_stretches stretches of positions has its own bounded probe
-- of the primary key. Gaps first, they hold the lowest positions. A gap all of whose holders are still there was empty and
-- still is: no other transaction can fill it, so it is not probed.
inserting AS MATERIALIZED (
    SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') AS holders
    {{ inserting }}
),
stretch AS MATERIALIZED (
    (SELECT unnest(positions) AS positions
     FROM (SELECT gap.positions FROM outbox.gap CROSS JOIN inserting
           WHERE NOT gap.holders <@ inserting.holders OR gap.holders = '{}' ORDER BY gap_id) AS due
     LIMIT :max_stretches)
    UNION ALL
    (SELECT unnest(positions) FROM outbox.unclaimed LIMIT :max_stretches)
),
pending AS MATERIALIZED (
    SELECT event.recorded_at
    FROM stretch
    CROSS JOIN LATERAL (
        SELECT recorded_at
        FROM outbox.event
        WHERE position >= lower(stretch.positions)
            AND position < coalesce(upper(stretch.positions), 9223372036854775807)
        ORDER BY position
        LIMIT :limit
    ) AS event
    LIMIT :limit
),
pending_sum AS (
    SELECT count(*) AS event_count, min(recorded_at) AS oldest_at, max(recorded_at) AS newest_at,
           count(*) FILTER (WHERE recorded_at > clock_timestamp()) AS future_count
    FROM pending
)
