"""What the account of our user in ClickHouse does to our statements is named by the doctor, and doing it helps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from outbox_pipeline.clickhouse import account
from outbox_pipeline.clickhouse.account import hidden_rows_problem
from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.clickhouse.schema import migrate_log
from outbox_pipeline.days import ALL_DAYS
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.replay import Outcome, batches_of_days, replay
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish
from tests.fixtures.profiles import ProfileProxy, engine_under
from tests.fixtures.proxy import through
from tests.fixtures.snapshots import delivered_batches


def finding(settings: Settings, name: str) -> Check:
    """Return one check of the doctor."""
    (found,) = [check for check in examine(settings) if check.name == name]
    return found


HELD = {
    **{"max_execution_time": "60", "max_rows_to_read": "1000000", "max_result_rows": "5000"},
    **{"max_insert_threads": "8", "final": "0"},
}
_HOLDING = (
    "<max_execution_time><readonly/></max_execution_time><max_rows_to_read><min>5</min></max_rows_to_read>"
    "<max_result_rows><readonly/></max_result_rows><final><readonly/></final>"
    "<max_insert_threads><readonly/></max_insert_threads><log_comment><readonly/></log_comment>"
)
_POLICY = "<databases><default><event_log><filter>position % 2 = 0</filter></event_log></default></databases>"


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an engine whose user may not change settings of ours, and does not see every row of the log."""
    folder, sees = tmp_path_factory.mktemp("holding"), "SHOW ROW POLICIES ON *.*"
    with engine_under(folder, HELD, constraints=_HOLDING, user=_POLICY, grant=sees) as url:
        yield url


def test_settings_that_a_profile_holds_are_named_all_at_once(holding: str, settings: Settings) -> None:
    """Each statement is refused with the first; the doctor tells all that differ, and none that is as it must be."""
    here = settings.model_copy(update={"clickhouse_url": SecretStr(holding)})

    with pytest.raises(ConfigurationError, match="'outbox doctor' names all"), clickhouse_client(here):
        pass
    said = finding(here, "clickhouse").message

    assert "max_execution_time must be 0 (is 60)" in said
    assert "max_rows_to_read must be 0 (is 1000000)" in said
    assert "max_result_rows must be 0 (is 5000)" in said
    assert "max_insert_threads must be 1 (is 8)" in said
    assert "log_comment must be free" in said
    assert "final" not in said


def test_a_setting_of_the_insert_alone_is_named_too(tmp_path: Path, stores: Stores) -> None:
    """Nothing of a batch is sent without it; once the profile allows it, everything arrives."""
    publish(stores.engine, 5)
    held = "<max_insert_threads><readonly/></max_insert_threads>"
    with engine_under(tmp_path, {"max_insert_threads": "8"}, constraints=held) as url:
        here = stores.settings.model_copy(update={"clickhouse_url": SecretStr(url)})
        check = finding(here, "clickhouse profile")
        with clickhouse_client(here) as client:
            migrate_log(client)
            with pytest.raises(ConfigurationError, match="profile of its user: Setting max_insert_threads is readonly"):
                relay(replace(stores, client=client, settings=here))
            assert delivered_ids(client) == []
    with engine_under(tmp_path, {"max_insert_threads": "1"}, constraints=held) as url:
        here = stores.settings.model_copy(update={"clickhouse_url": SecretStr(url)})
        with clickhouse_client(here) as client:
            relay(replace(stores, client=client, settings=here), until_empty=True)

            assert_each_exactly_once(stores.engine, client)
            assert len(delivered_ids(client)) == 5
    assert "max_insert_threads must be 1 (is 8)" in check.message


def test_rows_that_a_policy_hides_are_named(
    holding: str, settings: Settings, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to a user who may not see policies; one whom none concerns is told nothing."""
    here = settings.model_copy(update={"clickhouse_url": SecretStr(holding)})
    with clickhouse_client(here, under_profile=True) as client:
        migrate_log(client)
        said = hidden_rows_problem(client)
        client.run("INSERT INTO {table:Identifier} (position) FORMAT Values", body=[b"(1), (2)"])
        # What a user sees who may not see policies.
        monkeypatch.setattr(account, "_POLICIES", "SELECT table FROM system.no_table")
        of_the_plan = hidden_rows_problem(client)

    assert said is not None
    assert said.startswith("A row policy hides rows of event_log from user default")
    assert of_the_plan == said
    assert hidden_rows_problem(stores.client) is None
    assert finding(stores.settings, "clickhouse row policies").ok is True


def test_a_profile_that_only_reads_is_named(stores: Stores) -> None:
    """With readonly = 2 settings may be changed and nothing written; so is a user that may make no table."""
    assert stores.settings.clickhouse_url is not None
    proxy = ProfileProxy.to(stores.settings.clickhouse_url.get_secret_value())
    here = through(proxy, stores.settings)
    proxy.profile = {"allow_ddl": "0"}
    no_tables = finding(here, "clickhouse profile")
    proxy.profile = {"readonly": "2"}
    check = finding(here, "clickhouse profile")
    with pytest.raises(ConfigurationError, match="profile of its user"), clickhouse_client(here) as client:
        client.run("INSERT INTO {fence:Identifier} (attempt) FORMAT Values", body=[b"(1)"])
    proxy.profile = {}
    fine = finding(here, "clickhouse profile")
    proxy.close()

    assert (check.ok, no_tables.ok, fine.ok) == (False, False, True)
    assert "readonly must be 0 (is 2)" in check.message
    assert "allow_ddl must be 1 (is 0)" in no_tables.message


def test_a_projection_that_forbids_deletes_is_named(stores: Stores) -> None:
    """Before a repair needs it; what the sentence says is done, and the repair works."""
    delivered_batches(stores, (10,))
    stores.client.run("ALTER TABLE {table:Identifier} ADD PROJECTION by_id (SELECT * ORDER BY event_id)")
    stores.client.run("ALTER TABLE {table:Identifier} MATERIALIZE PROJECTION by_id")
    check = finding(stores.settings, "clickhouse projections")
    (batch,) = batches_of_days(stores.engine, ALL_DAYS.first_day, ALL_DAYS.last_day)
    (refused,) = replay(stores, [batch], reload=True)
    statement = check.message.rpartition(": ")[2].rstrip(".")

    stores.client.run(statement)
    relay(stores, until_empty=True)

    assert (check.ok, refused.outcome) == (False, Outcome.FAILED)
    assert "by_id of event_log" in check.message
    assert finding(stores.settings, "clickhouse projections").ok is True
    assert_each_exactly_once(stores.engine, stores.client)
