-- Write a batch of the old instance into the ledger: processed when ClickHouse has shown exactly its rows,
-- else cut, for a run to finish.
-- The ledger is not younger than the batch.
-- Rows under its id that are no events here are outside of it: those between its own positions, and whatever lies around them.
WITH mine AS (
    SELECT DISTINCT position FROM pg_temp.shown_row WHERE batch_id = :batch_id AND is_ours
),
bounds AS (
    SELECT min(position) AS first_position, max(position) AS last_position FROM mine
),
stranger AS (
    SELECT range_agg(int8range(position, position + 1)) AS positions
    FROM pg_temp.shown_row WHERE batch_id = :batch_id AND NOT is_ours
),
adopted AS (
    INSERT INTO outbox.batch (
        batch_id, positions, first_position, last_position, foreign_positions, recorded_on, event_count, context_bytes,
        oldest_recorded_at, status, attempt, generation
    )
    SELECT :batch_id, range_agg(int8range(position, position + 1)), bounds.first_position, bounds.last_position,
           CASE WHEN :has_strangers THEN
               int8multirange(int8range(0, bounds.first_position), int8range(bounds.last_position + 1, NULL))
               + coalesce((SELECT positions FROM stranger), '{}'::int8multirange)
               ELSE '{}'::int8multirange END,
           min(greatest(least(CAST(:first_day AS date), unclaimed.begun_on), least(
               (event.recorded_at AT TIME ZONE 'UTC')::date, (clock_timestamp() AT TIME ZONE 'UTC')::date))),
           count(*), sum(event.context_bytes), min(event.recorded_at), 'cut', :attempt, :generation
    FROM mine JOIN outbox.event USING (position) CROSS JOIN bounds CROSS JOIN outbox.unclaimed
    GROUP BY bounds.first_position, bounds.last_position
    RETURNING recorded_on
)
UPDATE outbox.unclaimed SET begun_on = least(unclaimed.begun_on, adopted.recorded_on) FROM adopted
