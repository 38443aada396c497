-- Keep rows of a batch that this ledger does not know: those that may stand here, each with whether the same event is at the
-- same position, and of all others the ids. An event that hides at a position which is not its own is none of them: it gets another.
WITH shown AS MATERIALIZED (
    SELECT shown.position, shown.event_id, event.position IS NOT NULL AS is_ours
    FROM unnest(CAST(:positions AS bigint[]), CAST(:event_ids AS uuid[])) AS shown (position, event_id)
    LEFT JOIN outbox.event ON event.position = shown.position AND event.event_id = shown.event_id
        AND NOT EXISTS (SELECT FROM pg_temp.hidden WHERE hidden.position = event.position)
),
staged AS (
    INSERT INTO pg_temp.shown_row (batch_id, position, is_ours)
    SELECT :batch_id, position, is_ours FROM shown WHERE position <= :up_to
)
INSERT INTO pg_temp.elsewhere (event_id, batch_id, position, is_foreign)
SELECT event_id, :batch_id, position, false FROM shown WHERE NOT is_ours
