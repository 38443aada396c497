"""The tables of a move by their names: made, named anew, exchanged with the log's, dropped.

ClickHouse takes no parameters here; names come from a setting that allows no other letters than those of an identifier.
"""

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.log_move.shape import Shape, shapes_from, statement_like


def prefix_of_moving(client: EventLogClient, role: str = "table") -> str:
    """Return what the name of a table begins with that is being filled; the number of a run follows."""
    return f"{client.names[role]}_moving_"


def prefix_of_before(client: EventLogClient, role: str = "table") -> str:
    """Return what the name of a table begins with that was the log's before; the number of a run follows."""
    return f"{client.names[role]}_before_move_"


def highest_run(client: EventLogClient) -> int:
    """Return the highest number of a run in the names of tables that are there, 0 for none."""
    prefixes = (prefix_of_moving(client), prefix_of_before(client))
    return max((number for prefix in prefixes for number in shapes_from(client, prefix)), default=0)


def take_over(client: EventLogClient, run: int, role: str = "table") -> None:
    """Give what earlier runs have left the name of this one, so that nothing which they still send finds it.

    An empty new table is dropped, and of the days any: it is soon made again. Of two of them one came late.
    """
    for shape in shapes_from(client, prefix_of_moving(client, role)).values():
        if shape.has_key_of_today and (role != "table" or not shape.rows):
            drop(client, shape.name)
        else:
            rename(client, shape.name, f"{prefix_of_moving(client, role)}{run}")


def make_like(client: EventLogClient, shape: Shape, name: str) -> None:
    """Make an empty table like this one, with the current sorting key."""
    database = str(client.rows("SELECT currentDatabase() AS name")[0]["name"])
    client.run(statement_like(shape, name, database))


def rename(client: EventLogClient, name: str, to: str) -> None:
    """Give a table another name; what runs on it goes on there, and what comes with the old name finds none."""
    client.run(f"RENAME TABLE {name} TO {to}")


def exchange(client: EventLogClient, name: str, role: str = "table") -> None:
    """Exchange the names of a table of the log and another one, at one moment for all who read."""
    client.run(f"EXCHANGE TABLES {client.names[role]} AND {name}")


def drop(client: EventLogClient, name: str) -> None:
    """Drop a table that a move has filled: its name is free at once, its disk some minutes later.

    With SYNC ClickHouse would wait for whatever still reads it; the engine of 25.8 was seen to wait without an end.
    """
    client.run(f"DROP TABLE IF EXISTS {name}")
