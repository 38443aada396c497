-- Move what lies between the first stretches of the unclaimed set and its open end into gaps, without having looked there.
-- A name that no transaction has stands among their holders, so the next cuts look at them, a portion at a time.
-- Nothing is moved that the sequence had not drawn when the holders were read, nor what this cut looks at.
WITH boundary AS (
    SELECT lower(stretch) AS first_position
    FROM (SELECT unnest(positions) AS stretch FROM outbox.unclaimed) AS every
    OFFSET :max_stretches LIMIT 1
),
open_end AS (
    SELECT lower(stretch) AS first_position
    FROM (SELECT unnest(positions) AS stretch FROM outbox.unclaimed) AS every
    WHERE upper_inf(stretch)
),
beyond AS MATERIALIZED (
    SELECT unclaimed.positions * int8multirange(int8range(
               boundary.first_position,
               greatest(boundary.first_position,
                        least(CAST(:last_drawn AS bigint) + 1, open_end.first_position)))) AS positions
    FROM outbox.unclaimed CROSS JOIN boundary LEFT JOIN open_end ON true
),
new_gap AS (
    INSERT INTO outbox.gap (positions, holders)
    SELECT range_agg(stretch), CAST(:holders AS text[])
    FROM beyond CROSS JOIN LATERAL unnest(positions) WITH ORDINALITY AS piece (stretch, nth)
    GROUP BY (nth - 1) / :stretches_a_gap
    ORDER BY (nth - 1) / :stretches_a_gap
)
UPDATE outbox.unclaimed
SET positions = unclaimed.positions - beyond.positions
FROM beyond
WHERE NOT isempty(beyond.positions)
RETURNING true
