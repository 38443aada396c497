"""The application's own event models as the pipeline knows them: one for each type and version.

They come from the modules that OUTBOX_EVENT_MODULES names. Nothing here judges an event; `validation` does.

Invariant: a registered model reads what it writes. One that does not would send every event published through it into
quarantine, so it is refused when it is loaded, as are two models for one type and version.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from inspect import getsourcefile, getsourcelines
from types import ModuleType
from typing import get_args

from pydantic import AliasChoices, PydanticUserError
from pydantic.fields import FieldInfo

from outbox_pipeline.errors import ConfigurationError, first_line
from outbox_pipeline.events import VERSION_MAX, Event
from outbox_pipeline.names import MAX_BYTES

Model = type[Event]


@dataclass(frozen=True)
class Registry:
    """The models to validate contexts with; without any, no context is."""

    models: tuple[Model, ...] = ()

    @cached_property
    def by_name(self) -> dict[tuple[str, int], Model]:
        """Each model by its event type and metadata version, in that order."""
        named = {(model.__event_type__, model.__metadata_version__): model for model in self.models}
        return dict(sorted(named.items()))

    @cached_property
    def versions(self) -> dict[str, list[int]]:
        """The known versions of each registered type."""
        found: dict[str, list[int]] = {}
        for event_type, version in self.by_name:
            found.setdefault(event_type, []).append(version)
        return found


@lru_cache(maxsize=8)
def load_registry(module_names: tuple[str, ...]) -> Registry:
    """Import the modules and return the models they have: every Event class under a name without a leading underscore.

    Imported names count, so a package may collect its models in `__init__.py`. Raises ConfigurationError for a module
    that cannot be imported or has no models, and for models that cannot serve.
    """
    found = [model for name in module_names for model in _models_of(_imported(name))]
    models = tuple(dict.fromkeys(found))
    for model in models:
        _require_usable(model)
    _require_distinct(models)
    return Registry(models)


def _imported(name: str) -> ModuleType:
    said = f"OUTBOX_EVENT_MODULES names {name}, which"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"{said} needs a module that is missing: {first_line(error)}.") from error
        raise ConfigurationError(f"{said} is not there: install it, or put its folder on PYTHONPATH.") from error
    # Whatever an application's module does when it is imported; sys.exit() in it would end the pipeline quietly.
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {first_line(error, limit=200)}"
        raise ConfigurationError(f"{said} fails when it is imported: {why}.") from error


def _models_of(module: ModuleType) -> list[Model]:
    found = [value for name, value in vars(module).items() if not name.startswith("_") and _is_model(value)]
    if not found:
        raise ConfigurationError(
            f"OUTBOX_EVENT_MODULES names {module.__name__}, which has no event in it: name the modules with your "
            "subclasses of outbox_pipeline.Event."
        )
    return found


def _is_model(value: object) -> bool:
    if not isinstance(value, type) or not issubclass(value, Event) or value is Event:
        return False
    # Page[int] is the event Page, and Page is in the module as well.
    return value.__pydantic_generic_metadata__["origin"] is None


def _require_distinct(models: Iterable[Model]) -> None:
    seen: dict[tuple[str, int], Model] = {}
    for model in models:
        name = (model.__event_type__, model.__metadata_version__)
        other = seen.setdefault(name, model)
        if other is not model:
            raise ConfigurationError(
                f"{path_of(other)} and {path_of(model)} are both event type {name[0]}, version {name[1]}: "
                "give one of them another event_type or metadata_version."
            )


def _require_usable(model: Model) -> None:
    version = model.__metadata_version__
    if not isinstance(version, int) or not 1 <= version <= VERSION_MAX:
        raise ConfigurationError(f"{path_of(model)} has metadata_version {version!r}: it must be 1 or more.")
    size = len(str(model.__event_type__).encode())
    if size > MAX_BYTES["event_type"]:
        raise ConfigurationError(
            f"{path_of(model)} has an event_type of {size} bytes: it may have {MAX_BYTES['event_type']}."
        )
    try:
        model.model_rebuild()
    except (PydanticUserError, NameError) as error:
        raise ConfigurationError(f"{path_of(model)} is not complete: {first_line(error, limit=200)}") from error
    for problem in _unreadable(model):
        raise ConfigurationError(f"{path_of(model)} does not read what it writes: {problem}.")


def _unreadable(model: Model) -> Iterator[str]:
    is_closed = model.model_config.get("extra") == "forbid"
    for name, field in model.model_fields.items():
        if field.exclude is True:
            if field.is_required():
                yield f"field {name} is required and excluded"
        elif written_name(name, field) not in _read_names(model, name, field) and (is_closed or field.is_required()):
            yield f"field {name} is written as {written_name(name, field)} and read under another name"
    if is_closed and model.model_computed_fields:
        yield f"it writes the computed field {next(iter(model.model_computed_fields))} and forbids extra fields"


def written_name(name: str, field: FieldInfo) -> str:
    """Return what a field is called in the context."""
    return field.serialization_alias or field.alias or name


def _read_names(model: Model, name: str, field: FieldInfo) -> set[object]:
    config = model.model_config
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
    names = {choice if isinstance(choice, str) else tuple(choice.path) for choice in choices}
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    return (
        names
        | {path[0] for path in names if isinstance(path, tuple) and len(path) == 1}
        | ({name} if by_name else set())
    )


def path_of(model: Model) -> str:
    """Return a model's import path."""
    return f"{model.__module__}.{model.__qualname__}"


@dataclass(frozen=True)
class DescribedField:
    """One field as the context shows it."""

    name: str
    type: str
    is_required: bool


@dataclass(frozen=True)
class DescribedModel:
    """One registered model; `place` is file and line."""

    event_type: str
    metadata_version: int
    model: str
    fields: tuple[DescribedField, ...]
    place: str


def describe(registry: Registry) -> list[DescribedModel]:
    """Return what a person wants to know of each model, by type and version."""
    return [
        DescribedModel(event_type, version, path_of(model), tuple(_fields(model)), _place(model))
        for (event_type, version), model in registry.by_name.items()
    ]


def _fields(model: Model) -> Iterator[DescribedField]:
    for name, field in model.model_fields.items():
        plain = isinstance(field.annotation, type) and not get_args(field.annotation)
        shown = field.annotation.__name__ if plain and field.annotation else str(field.annotation)
        yield DescribedField(written_name(name, field), shown.replace("typing.", ""), field.is_required())


def _place(model: Model) -> str:
    try:
        return f"{getsourcefile(model)}:{getsourcelines(model)[1]}"
    except (OSError, TypeError):
        return "made at run time"
