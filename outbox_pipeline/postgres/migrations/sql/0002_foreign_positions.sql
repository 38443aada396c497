-- A batch that another life of this outbox cut and delivered may hold events that this one lost in a restore.

ALTER TABLE outbox.batch ADD COLUMN foreign_positions int8multirange NOT NULL DEFAULT '{}',
    ADD CONSTRAINT batch_owns_no_foreign_position CHECK (NOT positions && foreign_positions);

COMMENT ON COLUMN outbox.batch.foreign_positions IS 'Empty, but for a batch adopted from another life that delivered events under this batch_id which this outbox does not have: then where their rows may be. Final; such rows are never counted and never deleted.';
