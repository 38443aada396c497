"""Run config that is taken as it is written: no field of it is filled from the environment of the run.

Dagster reads each string, number and switch of a `dg.Config` also from `{env: NAME}`. Who may start runs could so
ask for any variable of the code location, and read it in a message. Invariant: every op with config, and every config
mapping, has its schema from here, so that Dagster refuses `{env: …}` before a run is made.
"""

from typing import Any

import dagster as dg

_LITERAL = {dg.StringSource: dg.String, dg.IntSource: dg.Int, dg.BoolSource: dg.Bool}


def literal(definition: dg.OpDefinition) -> dg.OpDefinition:
    """Return an op with the same config, of which every value is taken as it is written; a decorator above `dg.op`."""
    config: Any = definition.config_field
    return definition.configured(
        lambda value: value,
        name=definition.name,
        config_schema=_literal_fields(config.config_type.fields),
        description=definition.description,
    )


def literal_schema(model: type[dg.Config]) -> dict[str, dg.Field]:
    """Return the schema of *model* with values that are taken as they are written, for a config mapping."""
    return _literal_fields(model.to_fields_dict())


def _literal_fields(fields: Any) -> dict[str, dg.Field]:
    return {name: _literal_field(field) for name, field in fields.items()}


def _literal_field(field: dg.Field) -> dg.Field:
    given = {"default_value": field.default_value} if field.default_provided else {}
    return dg.Field(
        _literal_type(field.config_type), description=field.description, is_required=field.is_required, **given
    )


def _literal_type(kind: Any) -> Any:
    if isinstance(kind, dg.Noneable):
        return dg.Noneable(_literal_type(kind.inner_type))
    if isinstance(kind, dg.Array):
        return dg.Array(_literal_type(kind.inner_type))
    return _LITERAL.get(kind, kind)
