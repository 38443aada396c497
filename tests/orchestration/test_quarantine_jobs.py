"""Quarantine from Dagster: jobs that count before they change, and a check that warns while events are held."""

import json

import dagster as dg
import pytest
from sqlalchemy import text

from outbox_pipeline.operations.quarantine import count_held, show
from outbox_pipeline.orchestration.assets import OUTBOX_KEY
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.delivery.steps import DELIVERED_WHOLE
from outbox_pipeline.orchestration.quarantine import QUARANTINE_EMPTY
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.held import hold
from tests.fixtures.sensors import latest_check, tick_health

CHECK = dg.AssetCheckKey(OUTBOX_KEY, QUARANTINE_EMPTY)


def run(instance: dg.DagsterInstance, job: str, **config: object) -> dg.ExecuteInProcessResult:
    """Run a job as its launchpad does; without config as it is prefilled."""
    (op,) = build_definitions().resolve_job_def(job).graph.node_dict
    return (
        build_definitions()
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            run_config={"ops": {op: {"config": config}}} if config else None,
            raise_on_error=False,
        )
    )


def shown(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    """Return the metadata of the job's one op."""
    (event,) = result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Return what the run failed with."""
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    assert event.step_failure_data.user_failure_data is not None
    return event.step_failure_data.user_failure_data.description or ""


def test_a_requeue_as_it_is_prefilled_only_counts(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Launching the job without a thought changes nothing and shows what it would mean."""
    hold(stores, 3)

    result = run(instance, "requeue_quarantined")

    assert result.success
    assert shown(result)["held"] == 3
    assert shown(result)["reasons"] == {"context_not_object": 3}
    assert count_held(stores.engine).count == 3


def test_a_requeue_gives_the_chosen_events_back(instance: dg.DagsterInstance, stores: Stores) -> None:
    """With the dry run off the chosen events are pending again; the others stay held."""
    hold(stores, 2)
    hold(stores, 1, event_type="invoice_sent")

    result = run(instance, "requeue_quarantined", event_type="order_placed", dry_run=False)

    assert result.success
    assert shown(result)["requeued"] == 2
    with stores.engine.begin() as connection:
        pending = text("SELECT event_type FROM outbox.event_status WHERE status = 'pending'")
        assert list(connection.execute(pending).scalars()) == ["order_placed"] * 2
    assert count_held(stores.engine).count == 1


def test_a_discard_keeps_its_note(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The note from the config is what `outbox quarantine show` tells later."""
    first, second = hold(stores, 2)

    counted = run(instance, "discard_quarantined", event_ids=[str(first)], note="test traffic")
    done = run(instance, "discard_quarantined", event_ids=[str(first)], note="test traffic", dry_run=False)

    assert (shown(counted)["held"], "discarded" in shown(counted)) == (1, False)
    assert shown(done)["discarded"] == 1
    notes = [show(stores.engine, Filter(event_ids=frozenset({name}))).history[0].note for name in (first, second)]
    assert notes == ["test traffic", None]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"dry_run": False, "note": "why"}, "No filter is given"),
        ({"dry_run": False, "everything": True, "note": " "}, "Say why"),
        ({"event_type": "nothing", "note": "why"}, "No held event matches"),
        ({"since": "yesterday", "note": "why"}, "no time"),
        ({"event_ids": ["no-uuid"], "note": "why"}, "no id of an event"),
    ],
)
def test_a_wrong_config_fails_in_one_sentence(
    instance: dg.DagsterInstance, stores: Stores, config: dict[str, object], said: str
) -> None:
    """What cannot be meant changes nothing, is not retried, and says what to do."""
    hold(stores)

    result = run(instance, "discard_quarantined", **config)

    assert not result.success
    assert said in failure(result)
    assert count_held(stores.engine).count == 1


def test_a_discard_without_note_is_refused_before_it_starts(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The launchpad marks the missing note; no run starts without it."""
    with pytest.raises(dg.DagsterInvalidConfigError, match="note"):
        run(instance, "discard_quarantined", everything=True)


def test_the_check_warns_while_events_are_held(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The sensor turns the check yellow with counts by reason, and green again once nothing is held."""
    first = tick_health(instance, stores)
    green = latest_check(instance, QUARANTINE_EMPTY)
    hold(stores, 2)
    second = tick_health(instance, stores, first.cursor)
    yellow = latest_check(instance, QUARANTINE_EMPTY)
    run(instance, "discard_quarantined", everything=True, note="why", dry_run=False)
    tick_health(instance, stores, second.cursor)
    after = latest_check(instance, QUARANTINE_EMPTY)

    assert green is not None
    assert green.passed
    assert yellow is not None
    assert (yellow.passed, yellow.severity, yellow.blocking) == (False, dg.AssetCheckSeverity.WARN, False)
    assert yellow.metadata["reasons"].value == {"context_not_object": 2}
    assert "requeue_quarantined" in (yellow.description or "")
    assert after is not None
    assert after.passed


def test_the_check_can_be_executed_by_hand(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The Execute button of the check gives the same answer as the sensor."""
    hold(stores)
    definitions = build_definitions()
    job = definitions.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=set(), asset_check_selection={CHECK}
    )

    result = job.execute_in_process(instance=instance)

    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == (QUARANTINE_EMPTY, False)


def test_a_delivery_does_not_evaluate_the_check(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A run of deliver_batch reports its own proof and nothing about the quarantine."""
    job = build_definitions().resolve_job_def("deliver_batch")

    result = job.execute_in_process(instance=instance, partition_key=today().isoformat())

    assert [check.check_name for check in result.get_asset_check_evaluations()] == [DELIVERED_WHOLE]


def test_no_context_reaches_dagster(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Neither the jobs nor the check show anything of an event's content."""
    publish(stores.engine, 1, context='["sekret"]')
    relay(stores, until_empty=True)
    tick_health(instance, stores)
    result = run(instance, "requeue_quarantined", everything=True, dry_run=False)

    logged = [entry.to_json() for entry in instance.all_logs(result.run_id)]
    check = latest_check(instance, QUARANTINE_EMPTY)
    assert check is not None
    assert "sekret" not in json.dumps(logged) + str(check)
