-- Where else one of a processed batch's positions is, empty when nowhere: deleting its event would then lose it.
SELECT concat_ws(', ',
    CASE WHEN EXISTS (SELECT FROM outbox.unclaimed WHERE unclaimed.positions && batch.positions)
        THEN 'unclaimed' END,
    CASE WHEN EXISTS (SELECT FROM outbox.gap WHERE gap.positions && batch.positions)
        THEN 'a gap' END,
    CASE WHEN EXISTS (
        SELECT FROM outbox.quarantined_event AS held
        WHERE held.status <> 'requeued' AND held.position >= batch.first_position
            AND held.position <= batch.last_position AND batch.positions @> held.position
    ) THEN 'quarantine' END)
FROM outbox.batch
WHERE batch.batch_id = :batch_id
