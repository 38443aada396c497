-- The positions in which events of these days can stand: from the batches before them to the batches after them.
-- Days may overlap by position; what lies in both is looked at for both. Nothing stands below the first event there is.
SELECT greatest(
           (SELECT coalesce(min(position), 1) FROM outbox.event),
           least(
               (SELECT min(first_position) FROM outbox.batch WHERE recorded_on BETWEEN :first_day AND :last_day),
               coalesce((SELECT max(last_position) + 1 FROM outbox.batch WHERE recorded_on < :first_day), 1)
           )
       ) AS first_position,
       least(
           coalesce(pg_sequence_last_value('outbox.event_position_seq'), 0),
           greatest(
               (SELECT max(last_position) FROM outbox.batch WHERE recorded_on BETWEEN :first_day AND :last_day),
               coalesce(
                   (SELECT min(first_position) - 1 FROM outbox.batch WHERE recorded_on > :last_day),
                   9223372036854775807
               )
           )
       ) AS last_position
