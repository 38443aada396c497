"""Write the pages `commands.md` and `settings.md` from what they describe: the command line and the class Settings.

`make docs` runs it; a test compares the pages with what it would write.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from outbox_pipeline.cli import main
from outbox_pipeline.settings import Settings, secret_files

_FOLDER = Path(__file__).parent

_COMMANDS = """\
# Commands

Results go to stdout, messages to stderr.
The exit code is 0, 1 when something failed, 2 for wrong use.
`outbox COMMAND --help` says the same as this page; [the settings](settings.md) are environment variables.

"""

_SETTINGS = """\
# Settings

The environment is the only source, and a wrong value is refused with one sentence that names it.
Without any, the commands run embedded engines for one user of one machine.
`outbox doctor` names variables that look like a setting and are none.

A secret may lie in a file instead, which a variable with `_FILE` at its end names: {secrets}.
The file holds the secret alone, with or without a line break after it, and only one of both variables may be set.
A process reads it with its other settings, and one that opens connections for hours goes on with what it has read.
"""

#: The heading above a setting and those that follow it.
_HEADINGS = {
    "postgres_url": "Servers",
    "home": "Embedded engines",
    "environment": "Events",
    "batch_max_events": "Batches",
    "lease_seconds": "Runs and retries",
    "recheck_seconds": "Proofs and retention",
    "freshness_hours": "Dagster's UI",
    "sensor_interval_seconds": "Sensors and alerts",
    "log_format": "Logs",
}

#: Where a setting is explained.
_MORE = {
    "clickhouse_url": "deploying.md#the-url-of-clickhouse",
    "celery_broker": "scaling.md#runs-on-celery-workers",
    "ui_hosts": "deploying.md#the-door-of-the-ui",
    "event_modules": "publishing.md#typed-versioned-events",
    "linger_seconds": "operating.md#how-many-runs-a-day",
    "max_attempts": "operating.md#what-counts-against-a-batch",
    "retention_days": "operating.md#keep-the-database-small",
    "alert_webhook_url": "operating.md#alerts",
}


def commands_page() -> str:
    """Return the page of all commands: a table, then each command's help."""
    group: Any = typer.main.get_command(main.app)
    page = get_docs_for_click(obj=group, ctx=typer.Context(group), name="outbox")
    sections = page.partition("\n## ")[2].split("\n## ")
    panels = list(dict.fromkeys(command.rich_help_panel for command in group.commands.values()))
    ordered = sorted(group.commands.items(), key=lambda item: panels.index(item[1].rich_help_panel))
    table = "\n".join(_row(name, command) for name, command in ordered)
    explained = "\n".join(map(_section, sections)).rstrip()
    return f"{_COMMANDS}| to | command | does |\n|---|---|---|\n{table}\n\n{explained}\n"


def settings_page() -> str:
    """Return the page of all settings, in the order of their fields."""
    secrets = ", ".join(f"`{variable}`" for variable in secret_files())
    lines = [_SETTINGS.format(secrets=secrets).rstrip()]
    for name, field in Settings.model_fields.items():
        if name in _HEADINGS:
            lines += ["", f"## {_HEADINGS[name]}", "", "| variable | default | meaning |", "|---|---|---|"]
        more = f" ([more]({_MORE[name]}))" if name in _MORE else ""
        meaning = f"{field.description}{_range(field.metadata)}{more}"
        lines.append(f"| `OUTBOX_{name.upper()}` | {_shown(field.default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _row(name: str, command: Any) -> str:
    return f"| {command.rich_help_panel.lower()} | [`outbox {name}`](#outbox-{name}) | {_paragraphs(command.help)[0]} |"


def _section(text: str) -> str:
    # A family's list of its members would cut their sentences short; each has a section of its own.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .+\n)+\n?", "", text)
    text = text.replace("* `-h, --help`: Show this message and exit.\n", "")
    text = text.replace("* `--help`: Show this message and exit.\n", "")
    text = re.sub(r"\*\*Options\*\*:\n\n(?!\*)", "", text)
    explained, usage, rest = text.partition("**Usage**:")
    heading, _, explained = explained.partition("\n")
    return "\n".join([f"## {heading}", "", *_sentences(explained), f"{usage}{rest}".rstrip(), ""])


def _sentences(text: str) -> Iterator[str]:
    for paragraph in _paragraphs(text):
        yield from re.sub(r"(?<=[a-z)`]\.) (?=[A-Z`])", "\n", paragraph).splitlines()
        yield ""


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]


def _range(metadata: list[Any]) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    found = [(said, getattr(each, key, None)) for each in metadata for key, said in words.items()]
    bounds = [f"{said} {value:,}" for said, value in found if value is not None]
    return f"; {', '.join(bounds)}" if bounds else ""


def _shown(default: object) -> str:
    if default is None:
        return "empty"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    (_FOLDER / "commands.md").write_text(commands_page(), encoding="utf-8")
    (_FOLDER / "settings.md").write_text(settings_page(), encoding="utf-8")
