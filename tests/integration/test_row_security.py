"""Row level security: what a policy may hide stops the ledger with a sentence, and nothing is taken for gone."""

import re
from collections.abc import Callable, Iterator
from datetime import date

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline import publish_event
from outbox_pipeline.errors import LedgerError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.health import read_health
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish, publish_in
from tests.fixtures.roles import LoginUrl

ALL_DAYS = (date.min, date.max)

#: Every table of the outbox whose rows mean something to a delivery.
TABLES = (
    "batch",
    "delivered_elsewhere",
    "event",
    "gap",
    "quarantined_event",
    "schema_version",
    "unclaimed",
    "watermark",
)

_LEDGER = """
SELECT (SELECT jsonb_agg(batch ORDER BY batch_id) FROM outbox.batch)::text,
       (SELECT jsonb_agg(gap ORDER BY gap_id) FROM outbox.gap)::text,
       (SELECT jsonb_agg(unclaimed) FROM outbox.unclaimed)::text,
       (SELECT count(*) FROM outbox.event)
"""


@pytest.fixture
def pipe(stores: Stores, login_url: LoginUrl) -> Iterator[Stores]:
    """The stores as a role sees them that is a member of `outbox_pipeline` and no more."""
    settings = stores.settings.model_copy(
        update={"postgres_url": type(stores.settings.postgres_url)(login_url("outbox_pipeline"))}
    )
    engine = create_outbox_engine(settings)
    yield Stores(engine, stores.client, settings)
    engine.dispose()


def run(stores: Stores, *statements: str) -> None:
    """Do what an administrator does."""
    with stores.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def hide(stores: Stores, table: str = "event") -> None:
    """Let a policy hide every row of a table that is not production's, or all rows."""
    run(stores, f"ALTER TABLE outbox.{table} ENABLE ROW LEVEL SECURITY")
    if table == "event":
        run(stores, "CREATE POLICY p ON outbox.event FOR SELECT USING (environment = 'production')")


def publish_to(stores: Stores, environment: str, count: int = 10) -> None:
    """Publish through the function that every language has."""
    run(stores, f"SELECT count(outbox.publish('t', '{{}}', '{environment}')) FROM generate_series(1, {count})")


def ledger(stores: Stores) -> tuple[object, ...]:
    """Return the whole ledger, to compare before and after."""
    with stores.engine.begin() as connection:
        return tuple(connection.execute(text(_LEDGER)).one())


def role_of(stores: Stores) -> str:
    """Return the role that these stores connect as."""
    return str(stores.engine.url.username)


def remedies(sentence: str) -> dict[str, str]:
    """Return the two statements of which the sentence says that either helps."""
    disable = re.search(r"(ALTER TABLE .* DISABLE ROW LEVEL SECURITY), or", sentence)
    bypass = re.search(r"(ALTER ROLE \S+ BYPASSRLS)\.", sentence)
    assert disable
    assert bypass
    return {"disable": disable[1], "bypass": bypass[1]}


#: Everything that must not go on, and everything that must not say that all is well.
LOOKS: tuple[Callable[[Stores], object], ...] = (
    lambda stores: relay(stores, until_empty=True),
    lambda stores: plan_tick(stores.engine, stores.settings, days=ALL_DAYS),
    lambda stores: request_batches(stores.engine, stores.settings, limit=9),
    record_completeness,
    lambda stores: read_status(stores.engine),
    lambda stores: read_health(stores.engine),
    prune,
    adopt,
    reconcile,
)


@pytest.mark.parametrize("remedy", ["disable", "bypass"])
def test_hidden_events_are_neither_forgotten_nor_called_delivered(stores: Stores, pipe: Stores, remedy: str) -> None:
    """Every command names table, role and remedy, and changes nothing; after the remedy each event arrives once."""
    publish_to(stores, "development")
    publish_to(stores, "production")
    hide(stores)
    before = ledger(stores)

    said = set()
    for look in LOOKS:
        with pytest.raises(LedgerError, match="Row level security") as raised:
            look(pipe)
        said.add(str(raised.value).rpartition("Row level security")[2])
    found = {check.name: check for check in examine(pipe.settings)}

    assert ledger(stores) == before
    (sentence,) = said
    assert f"outbox.event from role {role_of(pipe)}" in sentence
    assert (found["ledger"].ok, sentence in found["ledger"].message) == (False, True)
    assert found["postgres"].ok
    assert pipe.client.rows("SELECT * FROM {delivered:Identifier}") == []

    run(stores, remedies(sentence)[remedy])
    relay(pipe, until_empty=True)
    record_completeness(pipe)

    assert_each_exactly_once(stores.engine, stores.client)
    assert read_status(pipe.engine).processed == 20


def test_hidden_rows_of_any_table_stop_the_cut(stores: Stores, pipe: Stores) -> None:
    """Whichever table of the ledger a policy may hide rows of, it is named, and nothing moves meanwhile."""
    with stores.engine.connect() as slow:
        publish_in(slow)
        publish(stores.engine, 3)
        publish(stores.engine, 1, context="[]")
        cut_batches(pipe.engine, pipe.settings, limit=1)
        slow.commit()
    before = ledger(stores)

    for table in TABLES:
        hide(stores, table)
        for look in LOOKS[:4]:
            with pytest.raises(LedgerError, match=rf"hide rows of outbox\.{table} from role {role_of(pipe)}"):
                look(pipe)
        run(stores, f"ALTER TABLE outbox.{table} DISABLE ROW LEVEL SECURITY")

    assert ledger(stores) == before
    relay(pipe, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_policy_that_comes_during_an_attempt_ends_it(stores: Stores, pipe: Stores) -> None:
    """Between the cut and the read rows are hidden: the attempt fails with the sentence, and the next one delivers."""
    publish_to(stores, "development")
    cut_batches(pipe.engine, pipe.settings, limit=1)
    (request,) = request_batches(pipe.engine, pipe.settings, limit=1)
    delivery = start_requested(pipe, request.batch_id, request.attempt)
    hide(stores)

    with pytest.raises(LedgerError, match=r"hide rows of outbox\.event") as raised:
        delivery.prepare()
    end_failed(delivery, raised.value)

    with stores.engine.begin() as connection:
        kept = connection.execute(text("SELECT status, event_count, last_error FROM outbox.batch")).one()
    assert (kept.status, kept.event_count) == ("failed", 10)
    assert "BYPASSRLS" in kept.last_error
    run(
        stores, "ALTER TABLE outbox.event DISABLE ROW LEVEL SECURITY", "UPDATE outbox.batch SET next_attempt_at = now()"
    )
    relay(pipe, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_batch_that_a_policy_hides_in_mid_run_is_left_to_its_lease(stores: Stores, pipe: Stores) -> None:
    """When the ledger's own row is hidden the failure cannot be written, nothing is raised, and the lease runs out."""
    publish_to(stores, "development")
    cut_batches(pipe.engine, pipe.settings, limit=1)
    (request,) = request_batches(pipe.engine, pipe.settings, limit=1)
    delivery = start_requested(pipe, request.batch_id, request.attempt)
    hide(stores, "batch")

    with pytest.raises(LedgerError, match=r"hide rows of outbox\.batch") as raised:
        delivery.prepare()
    assert end_failed(delivery, raised.value) is None

    run(
        stores,
        "ALTER TABLE outbox.batch DISABLE ROW LEVEL SECURITY",
        "UPDATE outbox.batch SET lease_until = now() - interval '1 s'",
    )
    relay(pipe, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_owner_goes_on_until_the_policies_are_forced_on_it(stores: Stores, pipe: Stores) -> None:
    """Who owns the tables sees all rows, so nothing stops; FORCE ROW LEVEL SECURITY changes that."""
    role = role_of(pipe)
    run(stores, f"ALTER TABLE outbox.event OWNER TO {role}")
    hide(stores)
    publish_to(stores, "development")
    relay(pipe, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)

    run(stores, "ALTER TABLE outbox.event FORCE ROW LEVEL SECURITY")

    with pytest.raises(LedgerError, match=rf"hide rows of outbox\.event from role {role}"):
        relay(pipe, until_empty=True)


def test_a_policy_that_shows_everything_stops_the_ledger_too(stores: Stores, pipe: Stores) -> None:
    """Nobody can tell what a policy will hide tomorrow, so that it hides nothing today does not count."""
    publish_to(stores, "production")
    hide(stores)
    run(stores, "ALTER POLICY p ON outbox.event USING (true)")

    with pytest.raises(LedgerError, match="Row level security"):
        relay(pipe, until_empty=True)


def test_producers_publish_beside_policies_or_are_refused(stores: Stores, pipe: Stores, login_url: LoginUrl) -> None:
    """`outbox.publish` and captured tables write as the owner; who inserts by itself needs policies of its own."""
    producer = create_engine(login_url("outbox_producer"))
    run(
        stores,
        "CREATE TABLE public.shop (id integer)",
        f"GRANT INSERT ON public.shop TO {producer.url.username}",
        "SELECT outbox.capture('public.shop')",
    )
    hide(stores)
    with producer.begin() as connection:
        connection.execute(text("SELECT outbox.publish('t', '{}')"))
        connection.execute(text("INSERT INTO public.shop VALUES (1)"))
    with producer.connect() as connection:
        connection.execute(text("INSERT INTO public.shop VALUES (2)"))
        with pytest.raises(DBAPIError, match="row-level security"):
            publish_in(connection)
        connection.rollback()
    run(
        stores,
        "CREATE POLICY w ON outbox.event FOR INSERT TO outbox_producer WITH CHECK (true)",
        "CREATE POLICY r ON outbox.event FOR SELECT TO outbox_producer USING (true)",
    )
    with producer.begin() as connection:
        publish_event(connection, {}, event_type="t")
    producer.dispose()

    run(stores, "ALTER TABLE outbox.event DISABLE ROW LEVEL SECURITY")
    relay(pipe, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)
    with stores.engine.begin() as connection:
        counts = connection.execute(
            text("SELECT (SELECT count(*) FROM public.shop), (SELECT count(*) FROM outbox.event)")
        ).one()
    assert tuple(counts) == (1, 3)
