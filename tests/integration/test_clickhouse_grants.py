"""What a user of ClickHouse must be granted: with the list everything works, and without any one of it something fails.

Runs on a server that is given by URL as well, if its user may make users. What only a server shows is said by
`ONLY_ON_SERVERS`: the embedded engine lets every user read the system's tables.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import pytest
from pydantic import SecretStr

from outbox_pipeline.batches import Lease, LedgerIdentity
from outbox_pipeline.clickhouse.batch_contents import counts_of_batches
from outbox_pipeline.clickhouse.client import EventLogClient, clickhouse_client
from outbox_pipeline.clickhouse.completeness import drop_days, read_delivered, write_days
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.clickhouse.fences import FIRST, drop_fences, old_fences
from outbox_pipeline.clickhouse.grants import Duty, Grant, grants_of, grants_problem
from outbox_pipeline.clickhouse.known_bytes import known_bytes_problem
from outbox_pipeline.clickhouse.load import as_arrow, delete_older_generations, insert_generation, raise_fence
from outbox_pipeline.clickhouse.log_move.shape import shape_of
from outbox_pipeline.clickhouse.log_move.tables import make_like, prefix_of_moving
from outbox_pipeline.clickhouse.owner import add_claims, confirm_claim, drop_claim, new_claim, read_claims
from outbox_pipeline.clickhouse.probe import find_refused
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse
from outbox_pipeline.clickhouse.schema import migrate_log
from outbox_pipeline.clickhouse.table import check_table, create_table
from outbox_pipeline.clickhouse.versions import Version, version_of
from outbox_pipeline.clickhouse.witness import Cut, add_cuts, cuts_since, drop_cuts
from outbox_pipeline.days import DeliveredDay
from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.log import make_log
from outbox_pipeline.operations.log_move.move import move_log
from outbox_pipeline.operations.log_move.plan import plan_move
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.known_bytes import require_known_bytes
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.lost_log import log_problem, require_log_version
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.granted import Case, granted
from tests.fixtures.old_log import turn_into_log_of_before
from tests.fixtures.proofs import Odd, batch_of, table_of
from tests.fixtures.retained import age
from tests.fixtures.servers import Servers

TABLE = "event_log"
#: The oldest that is promised, and one from which on nothing more than the list's first part is asked for.
VERSIONS = ((25, 8), (99, 1))
ONLY_ON_SERVERS = "system.processes"
#: What the doctor finds here and is no matter of ClickHouse.
ELSEWHERE = {"encryption"}

#: A right, and what it is on.
Right = tuple[str, str]


def rights_of(duty: Duty, *versions: Version) -> list[Right]:
    """Return each right of a duty on these versions, with what it is on, in database `d`."""
    granted = (grant for each in versions for grant in grants_of(duty, database="d", table=TABLE, version=each))
    return list(dict.fromkeys((right, grant.on) for grant in granted for right in grant.rights))


DELIVERING, MAKING = rights_of(Duty.PIPELINE, *VERSIONS), rights_of(Duty.INIT, *VERSIONS)


def lines(duty: Duty, version: Version, database: str, *, without: Right = ("", "")) -> list[Grant]:
    """Return a duty's rights on a database, each by itself, without one of them."""
    rights = [right for right in rights_of(duty, version) if right != without]
    return [Grant((right,), on.replace("d.", f"{database}.")) for right, on in rights]


def nothing_of_the_table(version: Version, database: str) -> list[Grant]:
    """Return a delivery's rights without those on the event log itself."""
    return [grant for grant in lines(Duty.PIPELINE, version, database) if grant.on != f"{database}.{TABLE}"]


def with_a_constraint(client: EventLogClient) -> None:
    """Make a log that refuses some events."""
    migrate_log(client)
    client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")


def with_a_move_begun(client: EventLogClient) -> None:
    """Make a log with the key of before, and the new table of a move that was killed with other rows in it."""
    migrate_log(client)
    turn_into_log_of_before(client, with_owner=True)
    create_table(client)
    insert = "INSERT INTO {table:Identifier} (event_type, position) SELECT 'known', number FROM numbers(5)"
    client.run(insert)
    log = shape_of(client, client.table)
    assert log is not None
    make_like(client, log, f"{prefix_of_moving(client)}1")
    client.of_table(f"{prefix_of_moving(client)}1").run(insert)
    client.run(insert)


def empty(_: EventLogClient) -> None:
    """Make nothing."""


def cases(version: Version) -> dict[str, Case]:
    """Return who there is, on a server of that version."""
    delivering, making = partial(lines, Duty.PIPELINE, version), partial(lines, Duty.INIT, version)
    return {
        "pipeline": Case(delivering, with_a_constraint),
        "init": Case(making, empty),
        "move": Case(partial(lines, Duty.MOVE, version), with_a_move_begun),
        "reader": Case(partial(lines, Duty.READER, version), migrate_log),
        "hidden": Case(partial(nothing_of_the_table, version), migrate_log),
        "lost": Case(delivering, empty),
        **{
            name_of(Duty.PIPELINE, right): Case(partial(delivering, without=right), migrate_log)
            for right in rights_of(Duty.PIPELINE, version)
        },
        **{
            name_of(Duty.INIT, right): Case(partial(making, without=right), empty)
            for right in rights_of(Duty.INIT, version)
        },
    }


def name_of(duty: Duty, right: Right) -> str:
    """Return the case of a duty without one right."""
    return f"{duty}_{rights_of(duty, *VERSIONS).index(right)}"


@pytest.fixture(scope="module")
def urls(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of each case."""
    with client_of(servers.clickhouse_url) as client:
        version = version_of(client.driver.server_version)
    with granted(servers, tmp_path_factory.mktemp("granted"), cases(version)) as found:
        yield found


def client_of(url: str) -> AbstractContextManager[EventLogClient]:
    """Open a client as the user of a URL."""
    return clickhouse_client(Settings(clickhouse_url=SecretStr(url)))


@contextmanager
def as_user(stores: Stores, url: str) -> Iterator[Stores]:
    """Give the same ledger with the log, and as the user, of a URL."""
    settings = stores.settings.model_copy(update={"clickhouse_url": SecretStr(url)})
    with clickhouse_client(settings) as client:
        yield replace(stores, client=client, settings=settings)


def deliver_and_keep(client: EventLogClient) -> None:
    """Send every statement of a delivery, and of what keeps the log in order."""
    batch_id, identity = uuid4(), LedgerIdentity(uuid4(), 0)
    check_table(client)
    claim = new_claim(client, identity.ledger_id, "shop")
    add_claims(client, [claim])
    confirm_claim(client, claim)
    read_claims(client)
    assert known_bytes_problem(client, identity.ledger_id) is None
    add_cuts(client, [Cut(1, batch_id)], identity.ledger_id)
    list(cuts_since(client, 1))
    raise_fence(client, batch_id, 2)
    events = table_of([Odd(uuid4(), 1)])
    insert_generation(
        client,
        as_arrow(events, 0),
        lease=Lease(batch_id, 2, "here"),
        identity=identity,
        not_after=read_deadline(client, 60),
    )
    proof_in_clickhouse(client, batch_of(batch_id), generation=0)
    delete_older_generations(client, batch_of(batch_id), 1)
    find_refused(client, events, batch_id)
    now = datetime.now(UTC)
    told = dict.fromkeys(DeliveredDay.__dataclass_fields__, 0) | {"day": now.date()}
    write_days(client, [told | {"complete_through": now, "written_at": now}], identity=identity)
    read_delivered(client)
    drop_days(client, [now.date()], written_after=datetime(2000, 1, 1, tzinfo=UTC))
    old_fences(client, now=now, days=1, after=FIRST, limit=1)
    drop_fences(client, [batch_id])
    drop_cuts(client, below=2)
    drop_claim(client, claim)


def make_and_claim(client: EventLogClient) -> None:
    """Send every statement of `outbox init`."""
    create_table(client)
    list(counts_of_batches(client))
    claim = new_claim(client, uuid4(), "shop")
    add_claims(client, [claim])
    read_claims(client)
    assert known_bytes_problem(client, claim.ledger_id) is None
    drop_claim(client, claim)


def url_without(urls: dict[str, str], duty: Duty, right: Right) -> str:
    """Return the URL of the case without this right."""
    url = urls.get(name_of(duty, right))
    if url is None:
        pytest.skip("this version of ClickHouse asks for no such right")
    return url


def told_of(right: str, on: str) -> str:
    """Return the pattern of what is said without this right."""
    # Before 26.5 an insert takes CREATE TEMPORARY TABLE, which the right to create any table brings with it; before
    # 26.9 a view takes the right to create a table.
    wanted = "CREATE (TABLE|TEMPORARY TABLE|VIEW)" if right == "CREATE TABLE" else re.escape(right).replace("\\)", "")
    return rf"(?i){wanted}.* ON (\*\.\*|.*{re.escape(on.rstrip('*'))})"


def shown(right: str) -> str:
    """Return a right and what it is on, for the name of a test."""
    return right.replace(" ", "-").replace("*", "")


def test_exactly_these_rights_do_all_that_a_pipeline_does(stores: Stores, urls: dict[str, str]) -> None:
    """A delivery, a refused event, a second attempt, days, a repair, a prune and `init` of a log that is there."""
    publish(stores.engine, 3)
    publish(stores.engine, 1, event_type="poison")
    with as_user(stores, urls["pipeline"]) as here:
        cut_batches(here.engine, here.settings, limit=1)
        (request,) = request_batches(here.engine, here.settings, limit=1)
        end_failed(start_requested(here, request.batch_id, request.attempt), TransientError("tried once"))
        relay(here, until_empty=True)
        record_completeness(here)
        here.client.run("DELETE FROM {table:Identifier} WHERE true", settings={"lightweight_deletes_sync": 2})
        repair(here, reconcile(here))

        assert_each_exactly_once(here.engine, here.client)
        assert not reconcile(here).differences
        assert {check.name for check in examine(here.settings) if check.ok is False} <= ELSEWHERE
        make_log(here.engine, here.client)
        claim_table(here)
        age(here)
        assert prune(here).batches == 1


def test_exactly_these_rights_make_a_log(stores: Stores, urls: dict[str, str]) -> None:
    """`outbox init` in an empty database, and again, by a user that may do no more."""
    with as_user(stores, urls["init"]) as here:
        for _ in range(2):
            make_log(here.engine, here.client)
            claim_table(here)
            require_known_bytes(here)

        check_table(here.client)


def test_exactly_these_rights_move_a_log(stores: Stores, urls: dict[str, str]) -> None:
    """`outbox log move` goes on with a move that was killed, by a user that may do no more."""
    with as_user(stores, urls["move"]) as here:
        assert plan_move(here).copied_rows == 5

        moved = move_log(here)

        assert (moved.was_moved, moved.row_count) == (False, 10)
        assert moved.before is not None
        assert move_log(here).was_moved


def test_exactly_these_rights_read_what_was_delivered(urls: dict[str, str]) -> None:
    """An analyst's user reads the event log and the days, and changes nothing."""
    with client_of(urls["reader"]) as client:
        assert client.rows("SELECT * FROM {table:Identifier}") == []
        assert client.rows("SELECT * FROM {delivered:Identifier}") == []
        with pytest.raises(ConfigurationError, match="ALTER DELETE"):
            client.run("DELETE FROM {table:Identifier} WHERE true")


@pytest.mark.parametrize(("right", "on"), DELIVERING, ids=shown)
def test_no_right_of_a_delivery_is_superfluous(urls: dict[str, str], servers: Servers, right: str, on: str) -> None:
    """Without any one of them the doctor names the GRANT that is missing, and a statement is refused."""
    if on == ONLY_ON_SERVERS and servers.home is not None:
        pytest.skip("the embedded engine lets every user read the system's tables")
    with client_of(url_without(urls, Duty.PIPELINE, (right, on))) as client:
        (row,) = client.rows("SELECT currentDatabase() AS database, currentUser() AS user")
        there = on.replace("d.", f"{row['database']}.")
        said = grants_problem(client)
        assert said is not None
        assert re.findall(r"GRANT .*? TO \w+", said) == [f"GRANT {right} ON {there} TO {row['user']}"]
        with pytest.raises(ConfigurationError, match=told_of(right, there)):
            deliver_and_keep(client)


@pytest.mark.parametrize(("right", "on"), MAKING, ids=shown)
def test_no_right_of_init_is_superfluous(urls: dict[str, str], right: str, on: str) -> None:
    """Without any one of them `outbox init` is refused, with a sentence that names it."""
    with (
        client_of(url_without(urls, Duty.INIT, (right, on))) as client,
        pytest.raises(ConfigurationError, match=told_of(right, on.removeprefix("d."))),
    ):
        make_and_claim(client)


def test_a_log_that_is_hidden_is_not_lost(stores: Stores, urls: dict[str, str]) -> None:
    """A user without a right on the table is told which and makes no table; one that has it is told that it is lost."""
    publish(stores.engine)
    relay(stores, until_empty=True)
    with client_of(urls["hidden"]) as hidden, client_of(urls["lost"]) as lost:
        said = log_problem(stores.engine, hidden)

        assert said is not None
        assert "shows this user no table event_log, because" in said
        assert re.search(r"GRANT SELECT, INSERT, ALTER DELETE ON \w+\.event_log TO \w+", said)
        with pytest.raises(ConfigurationError, match="shows this user no table event_log, because"):
            require_log_version(stores.engine, hidden)
        with pytest.raises(ConfigurationError, match="CREATE TABLE"):
            make_log(stores.engine, hidden, recreate=True)
        assert "has no table event_log, but this ledger has delivered" in str(log_problem(stores.engine, lost))
