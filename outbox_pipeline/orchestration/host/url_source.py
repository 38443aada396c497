"""A URL in Dagster's files: text, or `env: NAME`, where the file that `NAME_FILE` names counts too.

Dagster's own StringSource knows variables only, and takes a secret out of no file.
"""

import os
from typing import Any

import dagster as dg
from dagster._config import ScalarUnion
from dagster._config.errors import PostProcessingError

from outbox_pipeline.secret_files import SUFFIX, read_secret

_ENV = dg.Selector({"env": str})  # type: ignore[no-untyped-call]


class UrlSource(ScalarUnion):
    """Text, or `env: NAME`, as Dagster's own StringSource, where the file that `NAME_FILE` names counts too."""

    def __init__(self) -> None:
        super().__init__(scalar_type=str, non_scalar_schema=_ENV, _key="OutboxUrlSource")

    def post_process(self, value: Any) -> str:
        """Return the text; what this raises Dagster tells, with the path of the value in its file."""
        if isinstance(value, str):
            return value
        variable = value["env"]
        try:
            url = read_secret(os.environ, variable)
        except ValueError as error:
            raise PostProcessingError(str(error)) from None
        if url is None:
            raise PostProcessingError(f"{variable} is not set, and neither is {variable}{SUFFIX}")
        return url
