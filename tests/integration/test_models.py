"""Models and deliveries on real engines: wrong contexts are held with their reasons, everything else arrives."""

from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from sqlalchemy import text

from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish

MODELS = """
    from outbox_pipeline import Event

    class UserCreated(Event, event_type="user_created"):
        email: str

    class UserCreated2(Event, event_type="user_created", metadata_version=2):
        email: str
        age: int
"""


@pytest.fixture
def typed(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """The stores with a registry of two versions of `user_created`."""
    (tmp_path / "shop_models.py").write_text(dedent(MODELS), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    settings = stores.settings.model_copy(update={"event_modules": ("shop_models",)})
    return replace(stores, settings=settings)


def publish_version(stores: Stores, version: int, context: str) -> None:
    """Publish one event of a version of `user_created` in SQL, where nothing checks its context."""
    statement = text("SELECT outbox.publish('user_created', CAST(:context AS json), metadata_version => :version)")
    with stores.engine.begin() as connection:
        connection.execute(statement, {"context": context, "version": version})


def held(stores: Stores) -> list[list[str]]:
    """Return the reasons of each event in quarantine, oldest first."""
    with stores.engine.begin() as connection:
        statement = text("SELECT reasons FROM outbox.quarantined_event ORDER BY position")
        return list(connection.execute(statement).scalars())


def delivered(stores: Stores) -> list[str]:
    """Return the contexts in ClickHouse."""
    found = stores.client.rows("SELECT event_context FROM {table:Identifier} ORDER BY position")
    return [str(row["event_context"]) for row in found]


def test_wrong_contexts_are_held_and_the_rest_is_delivered(typed: Stores) -> None:
    """Each version is held against its own model, an unknown one is held, free types and exact texts arrive."""
    spaced = '{ "email" : "a",  "age": "007" }'
    publish_version(typed, 1, '{"email": "a"}')
    publish_version(typed, 1, '{"mail": "a"}')
    publish_version(typed, 2, spaced)
    publish_version(typed, 2, '{"email": "a", "age": "seven"}')
    publish_version(typed, 3, '{"email": "a"}')
    publish_version(typed, 1, r'{"email": "\ud800"}')
    publish(typed.engine, 1, event_type="free", context='{"anything": 1}')

    relay(typed, until_empty=True)

    assert delivered(typed) == ['{"email": "a"}', spaced, '{"anything": 1}']
    assert held(typed) == [
        ["model: email: Field required; *: Extra inputs are not permitted"],
        ["model: age: Input should be a valid integer, unable to parse string as an integer"],
        ["metadata_version_unknown"],
        ["model: cannot be read as JSON by pydantic: unexpected end of hex escape at line 1 column 18"],
    ]
    assert_each_exactly_once(typed.engine, typed.client)


@pytest.mark.parametrize("first_has_models", [True, False])
def test_a_deploy_between_two_attempts_changes_nothing(typed: Stores, stores: Stores, first_has_models: bool) -> None:
    """What the first attempt has frozen is sent, whether the models came or went meanwhile."""
    before, after = (typed, stores) if first_has_models else (stores, typed)
    publish_version(typed, 1, '{"email": "a"}')
    publish_version(typed, 1, '{"email": 1}')
    cut_batches(before.engine, before.settings, limit=1)
    request = request_batches(before.engine, before.settings, limit=1)[0]
    delivery = start_requested(before, request.batch_id, request.attempt)
    delivery.validate()
    end_failed(delivery, RuntimeError("killed"))

    again = start_unrequested(after, request.batch_id)
    assert again.validate().was_frozen
    deliver(again)

    assert len(held(stores)) == first_has_models
    assert_each_exactly_once(stores.engine, stores.client)


def test_models_that_cannot_be_loaded_lose_nothing(typed: Stores, stores: Stores) -> None:
    """The attempt fails with the sentence that says what to do; once repaired the batch is delivered."""
    broken = replace(typed, settings=typed.settings.model_copy(update={"event_modules": ("no_such_shop",)}))
    publish_version(typed, 1, '{"email": "a"}')
    relay(broken, until_empty=True)
    with stores.engine.begin() as connection:
        said = connection.scalar(text("SELECT last_error FROM outbox.batch"))
    assert said is not None
    assert "no_such_shop, which is not there" in said
    assert delivered(typed) == []

    while not delivered(typed):
        relay(typed, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)
