-- An insert that ClickHouse answered with an error may have filled the log and not a view behind it: rows in the log prove nothing then.

ALTER TABLE outbox.batch
    ADD COLUMN answered_generation integer,
    ADD COLUMN may_resend boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT batch_resends_what_was_answered CHECK (answered_generation IS NOT NULL OR NOT may_resend);

COMMENT ON COLUMN outbox.batch.answered_generation IS 'The generation whose latest insert ClickHouse answered with an error; as long as it is the current one, rows in the log are no proof, because a view behind the log may lack them. Null once an insert of it was taken or no view can lack it, and from the mark on.';
COMMENT ON COLUMN outbox.batch.may_resend IS 'True from the resume of such a batch until its next sending: it is sent once more, also where the target of a view cannot drop what it has already.';
