-- Take what was picked out of the unclaimed set, and move what was not visible below it into a gap.
-- A gap never reaches beyond what the sequence had drawn when its holders were read: later positions are not lost, only unborn.
WITH passed_over AS (
    SELECT CAST(:unclaimed AS int8multirange)
         * int8multirange(int8range(1, least(CAST(:last_position AS bigint), CAST(:last_drawn AS bigint)) + 1, '[)'))
         - CAST(:visible AS int8multirange) AS positions
),
new_gap AS (
    INSERT INTO outbox.gap (positions, holders)
    SELECT positions, CAST(:holders AS text[]) FROM passed_over WHERE NOT isempty(positions)
    RETURNING positions
)
UPDATE outbox.unclaimed
SET positions = unclaimed.positions - CAST(:picked AS int8multirange)
              - coalesce((SELECT positions FROM new_gap), '{}'::int8multirange)
RETURNING (SELECT positions::text FROM new_gap) AS gap
