-- Look again at gaps that have lost a holder: what is visible now is unclaimed again, what no holder is left for never existed.
-- :holding was read by an earlier statement, so whoever is missing from it had finished before this one's snapshot.
WITH looked AS (
    DELETE FROM outbox.gap WHERE gap_id = ANY (CAST(:gap_ids AS bigint[]))
    RETURNING gap_id, positions, ARRAY(SELECT unnest(holders) INTERSECT SELECT unnest(CAST(:holding AS text[]))) AS holders
),
arrived AS (
    SELECT looked.gap_id, range_agg(int8range(event.position, event.position + 1)) AS positions
    FROM looked
    CROSS JOIN LATERAL unnest(looked.positions) AS stretch
    CROSS JOIN LATERAL (
        SELECT position FROM outbox.event
        WHERE position >= lower(stretch) AND position < coalesce(upper(stretch), 9223372036854775807)
        OFFSET 0
    ) AS event
    GROUP BY looked.gap_id
),
remaining AS (
    SELECT looked.positions - coalesce(arrived.positions, '{}'::int8multirange) AS positions,
           looked.holders || CAST(:prepared AS text[]) AS holders
    FROM looked LEFT JOIN arrived USING (gap_id)
),
kept AS (
    INSERT INTO outbox.gap (positions, holders)
    SELECT positions, holders FROM remaining WHERE cardinality(holders) > 0 AND NOT isempty(positions)
)
UPDATE outbox.unclaimed
SET positions = unclaimed.positions + coalesce((SELECT range_agg(positions) FROM arrived), '{}'::int8multirange)
