"""Make the log or bring it up to date; one that the ledger has delivered into and ClickHouse has lost, on demand only.

Invariant: no other procedure makes a log. What was in a lost one is not sent again here: the days are named, and
`reconcile` delivers them by the protocol of any delivery.
"""

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.owner import holding, read_claims
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.clickhouse.sources import key_sentence
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.clickhouse.versions import require_version
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.conditions import read_ledger_id
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import AcceptedDay, accepted_days
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.lost_log import is_lost, lost_sentence
from outbox_pipeline.relay.owner import require_known_rows, require_owner


@dataclass(frozen=True)
class LostEvents:
    """Events that the ledger has delivered and that are in no log: how many, of which UTC days."""

    event_count: int
    day_count: int
    first_day: date
    last_day: date

    @property
    def sentence(self) -> str:
        """Say how many of which days, as in `3,000 events of 2 days, 2026-03-01 to 2026-03-02`."""
        days = f"{self.day_count:,} days, {self.first_day} to {self.last_day}" if self.day_count > 1 else self.first_day
        return f"{counted(self.event_count, 'event')} of {days}"


@dataclass(frozen=True)
class MadeLog:
    """The version of a log that was made or was there, and of one that was lost what it held.

    `repairable` can be sent again; of what is `pruned` the outbox has no events any more. `old_key`: that a table which
    was there has the key of an earlier version, and what changes that.
    """

    version: str
    old_key: str | None = None
    repairable: LostEvents | None = None
    pruned: LostEvents | None = None


def make_log(engine: Engine, client: EventLogClient, *, recreate: bool = False, take: bool = False) -> MadeLog:
    """Make the log's tables where they are missing and bring them up to date; with *recreate* also a log that is lost.

    Safe to repeat. Raises ConfigurationError when the log is lost and *recreate* is not said, when it is newer than
    this code or not what it must be, and with nothing made when the server is too old.
    """
    require_version(client)
    if not take:
        _require_no_other(engine, client)
    if not is_lost(engine, client):
        return MadeLog(create_table(client), old_key=key_sentence(client, read_log(client)))
    if not recreate:
        raise ConfigurationError(lost_sentence(client))
    with ledger_transaction(engine) as connection:
        days = accepted_days(connection)
    return MadeLog(
        create_table(client),
        repairable=_sum([day for day in days if not day.is_pruned]),
        pruned=_sum([day for day in days if day.is_pruned]),
    )


def _require_no_other(engine: Engine, client: EventLogClient) -> None:
    # What is another outbox's is neither migrated nor made again: its owner would not learn that it was lost.
    tables = read_log(client).tables
    claims = read_claims(client) if "sources" in tables else []
    with ledger_transaction(engine) as connection:
        check_version(connection)
        ledger_id = read_ledger_id(connection)
    require_owner(client.table, claims, ledger_id)
    if "table" in tables and not holding(claims):
        require_known_rows(engine, client)


def _sum(days: list[AcceptedDay]) -> LostEvents | None:
    if not days:
        return None
    dates = {day.day for day in days}
    return LostEvents(sum(day.event_count for day in days), len(dates), min(dates), max(dates))
