"""How many sources a log serves: any number, or one where an earlier version has made its tables.

Invariant: a table whose sorting key does not begin with `source` stays one source's, whichever claims it first. In such
a log the proofs of two sources would read each other's rows, and of the days one source's would replace the other's. A
key can be changed by a new table only, which `outbox log move` makes.
"""

from outbox_pipeline.clickhouse.client import ONLY_SOURCE, EventLogClient
from outbox_pipeline.clickhouse.schema import LogState, read_log

_OTHER_CLAIM = """
SELECT label FROM {sources:Identifier} WHERE source != {source:String} ORDER BY registered_at LIMIT 1
"""

_OTHER_ROW = "SELECT 1 FROM {table:Identifier} WHERE source != {source:String} LIMIT 1"


def serves_one(found: LogState) -> bool:
    """Tell whether the log can be one source's only."""
    tables = (found.tables.get(role) for role in ("table", "completeness"))
    return any(table is not None and table["sorting_key"].split(", ")[0] != "source" for table in tables)


def crowded_problem(client: EventLogClient) -> str | None:
    """Return the sentence for a log that serves one source, and that not this one; None when there is room for it."""
    if not serves_one(read_log(client)):
        return None
    other = _other(client)
    if other is None:
        return None
    return (
        f"Table {client.table} was made before one could be shared (its sorting key, or that of "
        f"{client.names['completeness']}, does not begin with source), so it serves one outbox, and that is {other}: "
        "run 'outbox log move' as that outbox, which gives the log a table that can be shared, or give this outbox a "
        "table of its own with OUTBOX_CLICKHOUSE_TABLE (or another database) and run 'outbox init'."
    )


def key_sentence(client: EventLogClient, found: LogState) -> str | None:
    """Say that the log can be one source's only, and what changes that; None for a log that can be shared."""
    if not serves_one(found):
        return None
    return (
        f"Table {client.table} has the sorting key of an earlier version, so it can serve one outbox only: "
        "'outbox log move' gives it a new table while events are delivered ('outbox log move --dry-run' says what that "
        "takes)."
    )


def _other(client: EventLogClient) -> str | None:
    claims = client.rows(_OTHER_CLAIM)
    if claims:
        return str(claims[0]["label"])
    # Rows without a claim are an earlier version's, and of the only source. That one need not search for others.
    if client.source != ONLY_SOURCE and client.rows(_OTHER_ROW):
        return "the one whose rows are there"
    return None
