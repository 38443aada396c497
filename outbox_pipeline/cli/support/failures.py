"""How a command ends when it cannot do its work.

An error this package raises on purpose is one red sentence and exit code 1, or 2 when a setting or the use is wrong.
Anything else is a defect and keeps its traceback, without passwords.
"""

import os
import sys
import traceback
from types import TracebackType
from typing import Any

import typer
from typer.core import TyperGroup

from outbox_pipeline.errors import OutboxError, SettingsError, UsageError, without_secrets
from outbox_pipeline.logs import escaped


class OutboxGroup(TyperGroup):
    """The group of all commands; turns this package's errors into a sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except OutboxError as error:
            complain(str(error))
            raise typer.Exit(2 if isinstance(error, SettingsError | UsageError) else 1) from None


def complain(sentence: str) -> None:
    """Say in red on stderr what went wrong."""
    _say(sentence, "red")


def warn(sentence: str) -> None:
    """Say in yellow on stderr what is no fault and worth a look."""
    _say(sentence, "yellow")


def _say(sentence: str, colour: str) -> None:
    said = escaped(without_secrets(sentence), besides="\n")
    typer.secho(said, fg=None if os.environ.get("NO_COLOR") else colour, err=True)


def show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of a defect to stderr without passwords; takes the place of `sys.excepthook`."""
    sys.stderr.write(escaped(without_secrets("".join(traceback.format_exception(kind, error, trace))), besides="\n\t"))
