"""Move the table of the days: it has a key too, and a log is shared by several outboxes only if both have today's.

It is small, and written anew for a day whenever that changes. Invariant: a day's latest row counts, in whichever order
rows arrive, so rows that are copied twice change nothing.
"""

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.log_move import tables
from outbox_pipeline.clickhouse.log_move.shape import shape_of

_COPY = "INSERT INTO {into:Identifier} SELECT * FROM {name:Identifier}"


def move_days(client: EventLogClient, run: int) -> None:
    """Give the days a table with the current sorting key, or end what an earlier run has begun; the old table goes."""
    name, moving = client.names["completeness"], f"{tables.prefix_of_moving(client, 'completeness')}{run}"
    tables.take_over(client, run, "completeness")
    shape = shape_of(client, name)
    if shape is not None and not shape.has_key_of_today:
        if shape_of(client, moving) is None:
            tables.make_like(client, shape, moving)
        client.run(_COPY, {"into": moving, "name": name})
        tables.exchange(client, moving, "completeness")
    if shape_of(client, moving) is not None:
        # What was written between the copy and the exchange.
        client.run(_COPY, {"into": name, "name": moving})
        tables.drop(client, moving)
