"""The registry: which models the pipeline finds, and what each kind of wrong module is told."""

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from pydantic import Field, computed_field
from typer.testing import CliRunner

from outbox_pipeline import Event
from outbox_pipeline.cli.main import app
from outbox_pipeline.errors import ConfigurationError, SettingsError
from outbox_pipeline.monitoring.doctor import check_event_models
from outbox_pipeline.registry import Registry, load_registry
from outbox_pipeline.settings import Settings, load_settings
from tests.fixtures.commands import run_outbox

Write = Callable[[str], str]

_numbers = count()

SHOP = """
from typing import Generic, TypeVar
from pydantic import Field
from outbox_pipeline import Event

Item = TypeVar("Item")

class UserCreated(Event):
    email: str
    sum: int | None = Field(None, alias="total")

class UserCreated2(Event, event_type="user_created", metadata_version=2):
    email: str

class _Base(Event):
    pass

class Page(Event, Generic[Item]):
    items: list[Item]

IntPage = Page[int]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module with the given source, importable, and return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"shop_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return name

    return write


def refusal(*names: str) -> str:
    """Return what is said of modules that cannot serve."""
    with pytest.raises(ConfigurationError) as caught:
        load_registry(names)
    return str(caught.value)


def test_each_model_is_registered_under_type_and_version(module: Write) -> None:
    """Two versions of a type are two classes; bases under a leading underscore and forms of a generic are none."""
    registry = load_registry((module(SHOP),))

    assert list(registry.by_name) == [("page", 1), ("user_created", 1), ("user_created", 2)]
    assert registry.versions == {"page": [1], "user_created": [1, 2]}


def test_a_model_met_twice_is_one(module: Write) -> None:
    """A package that collects its models and the module they come from may both be named."""
    shop = module(SHOP)
    collected = module(f"from {shop} import UserCreated as Created, UserCreated2")

    assert len(load_registry((shop, collected)).models) == 3


def test_no_modules_are_no_models() -> None:
    """Without the setting nothing is registered."""
    assert load_registry(()) == Registry()


def test_two_models_for_one_version_are_refused(module: Write) -> None:
    """Which of them should judge is nobody's guess; both are named."""
    first = module("from outbox_pipeline import Event\nclass A(Event, event_type='t'): pass")
    second = module("from outbox_pipeline import Event\nclass B(Event, event_type='t'): pass")

    assert refusal(first, second) == (
        f"{first}.A and {second}.B are both event type t, version 1: give one of them another event_type or "
        "metadata_version."
    )


def test_a_wrong_module_is_one_sentence(module: Write) -> None:
    """Missing, missing something, failing, ending the process, and empty: each is told apart."""
    assert refusal("no_such_shop.events").startswith(
        "OUTBOX_EVENT_MODULES names no_such_shop.events, which is not there"
    )
    assert "needs a module that is missing: No module named 'no_such_thing'" in refusal(module("import no_such_thing"))
    assert "fails when it is imported: ZeroDivisionError: division by zero." in refusal(module("1 / 0"))
    assert "fails when it is imported: SystemExit: 3." in refusal(module("import sys; sys.exit(3)"))
    assert "has no event in it" in refusal(module("from outbox_pipeline import Event"))


def test_a_type_that_no_event_may_have_is_refused(module: Write) -> None:
    """Its events could never be published, so the class is named when it is loaded."""
    shop = module("from outbox_pipeline import Event\nclass A(Event, event_type='ä' * 251): pass")

    assert refusal(shop) == f"{shop}.A has an event_type of 502 bytes: it may have 500."


def test_an_import_error_shows_no_password(module: Write) -> None:
    """What an application's module says when it fails is cleaned of passwords."""
    said = refusal(module("raise RuntimeError('postgresql://shop:hunter2@host/db is down')"))

    assert "hunter2" not in said


def test_a_model_that_is_not_complete_is_refused(module: Write) -> None:
    """A name that is nowhere is found when the registry is loaded, not in the first batch."""
    said = refusal(module("from outbox_pipeline import Event\nclass A(Event):\n    b: 'Nowhere'"))

    assert "is not complete" in said


@pytest.mark.parametrize("version", ["0", "2**63", "'2'"])
def test_a_version_no_event_can_have_is_refused(module: Write, version: str) -> None:
    """Versions are integers from 1 on that PostgreSQL can store."""
    said = refusal(module(f"from outbox_pipeline import Event\nclass A(Event, metadata_version={version}): pass"))

    assert "it must be 1 or more" in said


class WritesAlias(Event):
    """Writes a name it does not know."""

    total: int = Field(serialization_alias="sum")


class WritesComputed(Event):
    """Writes a field it forbids."""

    @computed_field
    def double(self) -> int:
        """Return something."""
        return 2


class HidesRequired(Event):
    """Leaves out what it needs."""

    secret: str = Field(exclude=True)


@pytest.mark.parametrize("model", [WritesAlias, WritesComputed, HidesRequired], ids=lambda model: model.__name__)
def test_a_model_that_cannot_read_its_own_events_is_refused(
    model: type[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every event published through it would be held."""
    for other in (WritesAlias, WritesComputed, HidesRequired):
        if other is not model:
            monkeypatch.delitem(globals(), other.__name__)
    monkeypatch.setitem(sys.modules, f"wrong_{model.__name__}", sys.modules[__name__])

    assert "does not read what it writes" in refusal(f"wrong_{model.__name__}")


def test_aliases_that_are_read_again_are_fine(module: Write) -> None:
    """An alias for both ways, a choice of names and an open model with a computed field can all serve."""
    source = """
from pydantic import AliasChoices, Field, computed_field
from outbox_pipeline import Event

class A(Event):
    one: int = Field(alias="uno")
    two: int = Field(validation_alias=AliasChoices("two", "dos"))

class B(Event, extra="ignore"):
    @computed_field
    def double(self) -> int:
        return 2

class C(Event, populate_by_name=True):
    one: int = Field(validation_alias="uno")
    hidden: str = Field("x", exclude=True)
"""
    assert len(load_registry((module(source),)).models) == 3


def test_the_setting_is_a_list_of_module_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas and spaces separate; what is no module name is refused without showing it."""
    monkeypatch.setenv("OUTBOX_EVENT_MODULES", " shop.events, billing ,")
    assert load_settings().event_modules == ("shop.events", "billing")

    monkeypatch.setenv("OUTBOX_EVENT_MODULES", "postgresql://shop:hunter2@host")
    with pytest.raises(SettingsError, match="OUTBOX_EVENT_MODULES must be module names") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_events_list_shows_models_and_fields(module: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type, version, model, fields under the names they have in the context, and where it is defined."""
    name = module(SHOP)
    monkeypatch.setenv("OUTBOX_EVENT_MODULES", name)

    answer = run_outbox("events", "list", "--json")
    shown = CliRunner().invoke(app, ["events", "list"], env={"COLUMNS": "200"})

    _, first, second = json.loads(answer.stdout)
    assert (first["event_type"], first["metadata_version"], first["model"]) == (
        "user_created",
        1,
        f"{name}.UserCreated",
    )
    assert first["fields"] == [
        {"name": "email", "type": "str", "required": True},
        {"name": "total", "type": "int | None", "required": False},
    ]
    assert first["place"].endswith(f"{name}.py:8")
    assert second["metadata_version"] == 2
    assert "total: int | None (optional)" in shown.stdout


def test_events_list_without_modules_is_empty() -> None:
    """Nothing registered is an empty list for a machine and a sentence for a person."""
    assert run_outbox("events", "list", "--json").stdout == "[]\n"
    assert "OUTBOX_EVENT_MODULES names no modules" in run_outbox("events", "list").stderr


def test_events_list_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong module is exit code 1 and the same sentence."""
    monkeypatch.setenv("OUTBOX_EVENT_MODULES", "no_such_shop")
    done = run_outbox("events", "list")

    assert done.exit_code == 1
    assert "no_such_shop, which is not there" in done.stderr


def test_doctor_looks_at_the_models(module: Write) -> None:
    """Unset is fine, good ones are counted, wrong ones are named before a batch meets them."""
    assert check_event_models(Settings()).ok is True
    assert check_event_models(Settings(event_modules=(module(SHOP),))).message == (
        "Registered: 3 models of 2 event types."
    )
    assert check_event_models(Settings(event_modules=("no_such_shop",))).ok is False


def test_the_models_of_the_docs_can_be_registered(module: Write) -> None:
    """The page's snippet of two versions is a module that OUTBOX_EVENT_MODULES could name."""
    page = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
    section = page.partition("## Typed, versioned events\n")[2]
    snippet = section.partition("```python\n")[2].partition("```")[0]

    assert list(load_registry((module(snippet),)).by_name) == [("order.paid", 1), ("order.paid", 2)]
