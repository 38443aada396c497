-- Who could still fill a position, by virtual transaction.
SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}')
{{ inserting }}
