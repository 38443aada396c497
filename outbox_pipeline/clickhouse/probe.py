"""Find the events that ClickHouse itself refuses, by halves, without storing anything.

The halves go into a table with the event log's columns and constraints and the engine Null, which checks rows and
forgets them. What a materialized view refuses is not found here: views do not hang on the probe.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pyarrow as pa

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.load import as_arrow, into_columns
from outbox_pipeline.errors import BatchDataError

#: Requests in one go, so that a run shows progress; some ninety refused events scattered over a large batch.
_MAX_REQUESTS = 2_000

_INSERT = f"INSERT INTO {{probe:Identifier}} {into_columns()} FORMAT Arrow"


def find_refused(client: EventLogClient, events: pa.Table, batch_id: UUID) -> dict[int, str]:
    """Return the positions ClickHouse refuses and what it says about each; empty when it takes them all.

    About two requests for each halving down to a refused event; after 2,000 requests what was found until then is
    returned, and the caller, which leaves these out, comes back for the rest.
    """
    refused: dict[int, str] = {}
    with _probe_table(client, batch_id) as probe:
        waiting, requests = [events], 0
        while waiting:
            part, requests = waiting.pop(), requests + 1
            if requests > _MAX_REQUESTS:
                break
            said = _refusal(client, probe, part, batch_id)
            if said is None:
                continue
            if part.num_rows == 1:
                refused[part["position"][0].as_py()] = said
                continue
            half = part.num_rows // 2
            waiting += [part.slice(half), part.slice(0, half)]
    return dict(sorted(refused.items()))


def _refusal(client: EventLogClient, probe: str, events: pa.Table, batch_id: UUID) -> str | None:
    body = as_arrow(events, generation=0)
    named = {"probe": probe, "batch_id": str(batch_id), "generation": 0}
    try:
        client.run(_INSERT, named, body=body.pieces)
    except BatchDataError as error:
        return str(error)
    return None


@contextmanager
def _probe_table(client: EventLogClient, batch_id: UUID) -> Iterator[str]:
    # Named by the batch: an attempt killed here leaves an empty table that the next one replaces and drops.
    probe = f"{client.table}_probe_{batch_id.hex}"
    # Not CREATE OR REPLACE, which takes rights on a name that only ClickHouse knows before 26.9.
    client.run("DROP TABLE IF EXISTS {probe:Identifier}", {"probe": probe})
    # ClickHouse takes no identifier parameter behind AS; both names are made of letters, digits and underscores.
    client.run(f"CREATE TABLE {probe} AS {client.table} ENGINE = Null")
    try:
        yield probe
    finally:
        client.run("DROP TABLE IF EXISTS {probe:Identifier}", {"probe": probe})
