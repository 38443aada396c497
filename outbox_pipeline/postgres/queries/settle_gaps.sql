-- Look again at gaps that have lost a holder: what is visible now is unclaimed again, what no holder is left for never existed.
-- :holding was read by an earlier statement, so a transaction that is missing from it had finished before this one's snapshot.
-- A portion at a time: what was not probed keeps its holders, and so does everything when the probes found :max_events,
-- because then some of it may not have been probed to its end.
WITH portion AS MATERIALIZED (
    SELECT gap_id, unnest(positions) AS stretch
    FROM (SELECT gap_id, positions FROM outbox.gap
          WHERE gap_id = ANY (CAST(:gap_ids AS bigint[])) ORDER BY gap_id) AS ordered
    LIMIT :max_stretches
),
arrived AS MATERIALIZED (
    SELECT portion.gap_id, event.position
    FROM portion
    CROSS JOIN LATERAL (
        SELECT position FROM outbox.event
        WHERE position >= lower(stretch) AND position < coalesce(upper(stretch), 9223372036854775807)
        ORDER BY position
        LIMIT :max_events
    ) AS event
    LIMIT :max_events
),
extent AS MATERIALIZED (
    SELECT (SELECT count(*) FROM arrived) < :max_events AS is_probed_whole,
           (SELECT count(*) FROM portion) < :max_stretches AS is_all
),
found AS (
    SELECT gap_id, range_agg(int8range(position, position + 1)) AS positions FROM arrived GROUP BY gap_id
),
looked AS (
    DELETE FROM outbox.gap
    USING (SELECT gap_id, range_agg(stretch) AS positions FROM portion GROUP BY gap_id) AS probed
        LEFT JOIN found USING (gap_id)
    WHERE gap.gap_id = probed.gap_id
    RETURNING gap.holders, gap.observed_at,
              probed.positions - coalesce(found.positions, '{}'::int8multirange) AS unseen,
              gap.positions - probed.positions AS unprobed
),
remaining AS (
    SELECT unseen AS positions, still.holders, statement_timestamp() AS observed_at
    FROM looked
    CROSS JOIN LATERAL (
        SELECT ARRAY(SELECT unnest(looked.holders) INTERSECT SELECT unnest(CAST(:holding AS text[])) ORDER BY 1)
               || CAST(:prepared AS text[]) AS holders
    ) AS still
    WHERE (SELECT is_probed_whole FROM extent) AND cardinality(still.holders) > 0
    UNION ALL
    SELECT unseen, holders, observed_at FROM looked WHERE NOT (SELECT is_probed_whole FROM extent)
    UNION ALL
    SELECT unprobed, holders, observed_at FROM looked
),
merged AS (
    SELECT range_agg(positions) AS positions, holders, observed_at
    FROM remaining WHERE NOT isempty(positions) GROUP BY holders, observed_at
),
kept AS (
    INSERT INTO outbox.gap (positions, holders, observed_at)
    SELECT range_agg(stretch), holders, observed_at
    FROM merged CROSS JOIN LATERAL unnest(positions) WITH ORDINALITY AS piece (stretch, nth)
    GROUP BY holders, observed_at, (nth - 1) / :stretches_a_gap
),
returned AS (
    UPDATE outbox.unclaimed
    SET positions = unclaimed.positions + (SELECT range_agg(positions) FROM found)
    WHERE EXISTS (SELECT FROM found)
    RETURNING positions::text AS unclaimed
)
SELECT extent.is_probed_whole AND extent.is_all AS is_whole, (SELECT unclaimed FROM returned) AS unclaimed FROM extent
