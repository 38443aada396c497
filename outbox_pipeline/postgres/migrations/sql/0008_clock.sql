-- How long a lease or a wait lasts at most, beside its end: a clock that was ahead for a moment then holds no batch up.

ALTER TABLE outbox.batch ADD COLUMN lasting interval;

-- What is under way was written without it. Its beginning is in the row too, and its end is moved on by heartbeats only.
UPDATE outbox.batch
SET lasting = greatest(interval '0', CASE status
    WHEN 'failed' THEN next_attempt_at - failed_at
    WHEN 'requested' THEN lease_until - requested_at
    ELSE lease_until - started_at END)
WHERE status IN ('failed', 'requested', 'delivering');

COMMENT ON COLUMN outbox.batch.lasting IS 'How long the lease or the wait lasts at most. Written with each end of one, lease_until or next_attempt_at: an end further ahead than this was set under another clock and is over. Null in rows of an earlier version.';
