-- A batch that ClickHouse lacks the memory for is split; and since when a server in trouble has held a batch up.

-- A row of a split batch says to a release that does not know the word: processed, with no event. So it stays `processed`
-- there too, expects no row in ClickHouse, is never sent again, and counts nowhere.
ALTER TABLE outbox.batch
    ADD COLUMN trouble_since timestamptz,
    ADD COLUMN memory_failures integer NOT NULL DEFAULT 0 CHECK (memory_failures >= 0),
    ADD COLUMN refused_generations integer NOT NULL DEFAULT 0 CHECK (refused_generations >= 0),
    ADD COLUMN former_positions int8multirange,
    ADD COLUMN split_at timestamptz,
    ADD CONSTRAINT batch_is_split_at_a_time CHECK ((former_positions IS NULL) = (split_at IS NULL));

CREATE INDEX batch_split ON outbox.batch (split_at) WHERE former_positions IS NOT NULL;

COMMENT ON COLUMN outbox.batch.trouble_since IS 'When the first of the transient_failures was; they park the batch once that is more than 25 hours ago.';
COMMENT ON COLUMN outbox.batch.transient_failures IS 'Attempts since the last success or resume that ended because a server was in trouble.';
COMMENT ON COLUMN outbox.batch.memory_failures IS 'The latest attempts in a row whose insert ClickHouse lacked the memory for. From the third on the batch is split.';
COMMENT ON COLUMN outbox.batch.refused_generations IS 'How many generations were begun because ClickHouse refused events. As many as there are: it never took one.';
COMMENT ON COLUMN outbox.batch.former_positions IS 'Set once, when the batch is split: its positions until then, which are unclaimed again and end in other batches. Status is processed then, with no event, and pruned_at is set, so nothing sends it again. Null in every other batch.';
COMMENT ON COLUMN outbox.batch.split_at IS 'When the batch was split; its processed_at is 1970 then, so that it counts as no recent delivery.';
