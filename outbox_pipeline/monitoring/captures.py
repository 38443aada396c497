"""Whether the triggers of captured tables see every change, and the statements that help where they do not.

Capture refuses a table whose changes its triggers would not see, but only when it is called. Invariant: the catalog
alone is read, which every role may, and nothing is changed.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError, sentence_of
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.overview import read_unseen_changes

#: The check's name.
CAPTURED_TABLES = "captured tables"

#: What is wrong with a table whose changes are not published, or twice.
_WRONG = {
    "disabled": "{table_name} has triggers that are disabled ({detail}): {remedy}.",
    "missing": "{table_name} has no trigger for {detail}: {remedy}.",
    "doubled": "{table_name} has more than one trigger for {detail}, so it is published twice: {remedy}.",
    "partition": "{table_name} is a partition of {detail}, whose statements fire none of its triggers: {remedy}.",
    "child": "{table_name} is a child of {detail}, whose statements fire none of its triggers: {remedy}.",
    "parent": "{table_name} has the child {detail}, whose own statements fire none of its triggers: {remedy}.",
}
#: What may be meant.
_ODD = {
    "replica": (
        "Sessions that begin with session_replication_role = replica fire no trigger of {table_name}: {remedy}, or "
        "ALTER TABLE with ENABLE ALWAYS TRIGGER for each of them."
    ),
    "subscription": (
        "What the subscription {detail} writes into {table_name} fires no triggers: capture the table where it comes "
        "from."
    ),
    "replaced": (
        "{table_name} publishes under the name of {detail}, which is not captured: if that has taken its place, "
        "{remedy}."
    ),
}


def check_captures(engine: Engine) -> Check:
    """Find captured tables whose changes are not published, or twice, and warn of writers that may pass by."""
    try:
        with ledger_transaction(engine) as connection:
            table_count, found = read_unseen_changes(connection)
    except OutboxError as error:
        return Check(CAPTURED_TABLES, False, sentence_of(error))
    wrong, odd = _told(found, _WRONG), _told(found, _ODD)
    if wrong or odd:
        return Check(CAPTURED_TABLES, not wrong, " ".join(wrong + odd), is_warning=not wrong)
    if not table_count:
        return Check(CAPTURED_TABLES, True, "No table is captured.")
    said = f"Every change of {counted(table_count, 'captured table')} fires its triggers."
    return Check(CAPTURED_TABLES, True, said)


def _told(found: list[Any], sentences: Mapping[str, str]) -> list[str]:
    return [sentences[one["kind"]].format(**one) for one in found if one["kind"] in sentences]
