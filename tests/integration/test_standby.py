"""A standby: each command works there or says in one sentence why not; promoted and adopted, it delivers the rest."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from outbox_pipeline.errors import LedgerError, OutboxError, TransientError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.metrics import metrics_text
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.leases import resume_parked
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.standby import follow, promote, standby_of


def resume(stores: Stores) -> None:
    """Do what `outbox resume` does."""
    with ledger_transaction(stores.engine) as connection:
        resume_parked(connection)


#: What only a primary can do.
WRITES: tuple[Callable[[Stores], object], ...] = (
    lambda stores: relay(stores, until_empty=True),
    lambda stores: plan_tick(stores.engine, stores.settings, days=(date.min, date.max)),
    record_completeness,
    prune,
    adopt,
    reconcile,
    resume,
)

#: What only looks.
READS: tuple[Callable[[Stores], object], ...] = (
    lambda stores: read_status(stores.engine).processed == 3,
    lambda stores: trace_event(stores.engine, stores.settings, UUID(int=1)),
    lambda stores: extract_events(stores.engine, UUID(int=1)).num_rows == 0,
)


def works_or_says_why(look: Callable[[Stores], object], stores: Stores) -> bool:
    """Tell whether a look answers, or its sentence names the standby."""
    try:
        return bool(look(stores))
    except OutboxError as error:
        return "is a standby, which only reads" in str(error)


@pytest.mark.embedded_only
def test_a_standby_says_what_it_is_and_delivers_once_it_is_promoted(stores: Stores, tmp_path: Path) -> None:
    """No command ends in a traceback there; after the failover each event of both lives arrives exactly once."""
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    publish(stores.engine, 4)
    with standby_of(stores.engine, tmp_path / "standby") as url:
        follow(stores.engine, url)
        settings = stores.settings.model_copy(update={"postgres_url": SecretStr(url)})
        engine = create_outbox_engine(settings)
        there = Stores(engine, stores.client, settings)

        for write in WRITES:
            with pytest.raises(TransientError, match=r"is a standby, which only reads .*target_session_attrs"):
                write(there)
        assert all(works_or_says_why(look, there) for look in READS)
        metrics, problem = metrics_text(settings)
        assert "outbox_up 1" in metrics or "is a standby" in str(problem)
        assert any(check.ok is False and "is a standby" in check.message for check in examine(settings))

        promote(url)
        with pytest.raises(LedgerError, match="outbox adopt"):
            relay(there, until_empty=True)
        adopt(there)
        publish(engine, 5)
        relay(there, until_empty=True)
        record_completeness(there)

        assert read_status(engine).processed == 12
        assert_each_exactly_once(engine, stores.client)
        engine.dispose()
