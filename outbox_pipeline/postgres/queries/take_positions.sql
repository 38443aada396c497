-- Take what was picked out of the unclaimed set, and move what was not visible below it into gaps.
-- A gap never reaches beyond what the sequence had drawn when its holders were read: later positions
-- are not lost, only not yet allocated.
-- The number of the batch, if there is one, is used up with it, and the ledger is not younger than it.
-- Gaps are kept in rows of few stretches, so that looking at some of them again rewrites no others.
WITH passed_over AS MATERIALIZED (
    SELECT CAST(:unclaimed AS int8multirange)
         * int8multirange(int8range(1, least(CAST(:last_position AS bigint), CAST(:last_drawn AS bigint)) + 1, '[)'))
         - CAST(:visible AS int8multirange) AS positions
),
new_gap AS (
    INSERT INTO outbox.gap (positions, holders)
    SELECT range_agg(stretch), CAST(:holders AS text[])
    FROM passed_over CROSS JOIN LATERAL unnest(positions) WITH ORDINALITY AS piece (stretch, nth)
    GROUP BY (nth - 1) / :stretches_a_gap
    ORDER BY (nth - 1) / :stretches_a_gap
    RETURNING gap_id
)
UPDATE outbox.unclaimed
SET positions = unclaimed.positions - (CAST(:picked AS int8multirange) + passed_over.positions),
    last_cut_number = greatest(unclaimed.last_cut_number, CAST(:cut_number AS bigint)),
    begun_on = least(unclaimed.begun_on, CAST(:recorded_on AS date))
FROM passed_over
RETURNING (SELECT count(*) FROM new_gap)
