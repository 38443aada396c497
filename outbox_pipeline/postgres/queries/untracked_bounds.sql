-- The positions in which events of these days can stand: from the batches before them to the batches after them.
-- Days may overlap by position; what lies in both is looked at for both. Nothing stands below the first event there is.
-- A batch of a later day that stands before these batches was cut while the clock was ahead, one of an earlier day that
-- stands behind them while it was behind: neither is a bound.
WITH own AS (
    SELECT min(first_position) AS first_position, max(last_position) AS last_position
    FROM outbox.batch WHERE recorded_on BETWEEN :first_day AND :last_day
)
SELECT greatest(
           (SELECT coalesce(min(position), 1) FROM outbox.event),
           least(
               own.first_position,
               coalesce(
                   (SELECT max(batch.last_position) + 1 FROM outbox.batch
                    WHERE recorded_on < :first_day
                        AND batch.last_position < coalesce(own.first_position, 9223372036854775807)),
                   1
               )
           )
       ) AS first_position,
       least(
           coalesce(pg_sequence_last_value('outbox.event_position_seq'), 0),
           greatest(
               own.last_position,
               coalesce(
                   (SELECT min(batch.first_position) - 1 FROM outbox.batch
                    WHERE recorded_on > :last_day AND batch.first_position > coalesce(own.last_position, 0)),
                   9223372036854775807
               )
           )
       ) AS last_position
FROM own
