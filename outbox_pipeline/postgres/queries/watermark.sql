-- Note who may still insert, each with a time before which nothing of theirs can still appear; returns the earliest.
-- A transaction that was not there at the last look took the lock after it, so records later than it. A prepared one has
-- another name than it had before: it may be any of those that were there.
-- A time after :observed_at is from a clock that was ahead, or was set back since: a transaction that has it, or came after a
-- look at that time, may have recorded at any time, and nothing is known of when.
WITH known AS (
    SELECT key AS holder, value::timestamptz AS since FROM outbox.watermark, jsonb_each_text(holders)
),
present AS (
    SELECT holder,
           CASE WHEN coalesce(known.since, observed_at) > CAST(:observed_at AS timestamptz) THEN '-infinity'
                WHEN known.since IS NOT NULL THEN known.since
                WHEN holder LIKE '-1/%' THEN least(observed_at, (SELECT min(since) FROM known))
                ELSE observed_at END AS since
    FROM outbox.watermark
    CROSS JOIN unnest(CAST(:holders AS text[])) AS holder
    LEFT JOIN known USING (holder)
)
UPDATE outbox.watermark
SET observed_at = CAST(:observed_at AS timestamptz),
    holders = (SELECT coalesce(jsonb_object_agg(holder, since), '{}') FROM present)
RETURNING greatest(
    '1970-01-01 00:00:00+00', least(CAST(:observed_at AS timestamptz), (SELECT min(since) FROM present)))
