"""The documentation says what is true of the code: commands, settings, moves, reasons, tests, links and snippets."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from docs import reference
from outbox_pipeline.batches import MOVES
from outbox_pipeline.relay.delivery import REFUSED_BY_CLICKHOUSE
from outbox_pipeline.relay.elsewhere import ALREADY_DELIVERED
from outbox_pipeline.settings import Settings, secret_files, variable_of
from outbox_pipeline.validation import Reason
from tests.fixtures.pages import COMMANDS, ROOT, fences, read, without_fences

PAGES = [
    *(ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").rglob("README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"

_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_CALL = re.compile(r"(?:^|[\s(|])outbox (?P<command>[a-z][\w-]*)(?P<rest>[^|;&)\n]*)", re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ROW = re.compile(r"^\| `(?P<name>[^`|]+)` \| (?P<rest>.+) \|$", re.MULTILINE)


def calls(page: Path) -> Iterator[tuple[str, str]]:
    """Yield command and arguments wherever `outbox COMMAND` is written as code."""
    spans = _SPAN.findall(without_fences(page))
    for code in [*fences(page, "sh", ""), *spans]:
        for match in _CALL.finditer(code):
            yield match["command"], match["rest"].partition("#")[0]


def parameters(command: str, rest: str) -> list[Any]:
    """Return what a command takes; of a family, what its command that is named does."""
    found = COMMANDS[command]
    for word in rest.split()[:1] if isinstance(found, TyperGroup) else []:
        assert word in found.commands, f"outbox {command} {word}"
        found = found.commands[word]
    return list(found.params)


def rows(page: Path) -> dict[str, list[str]]:
    """Return the table rows whose first cell is code: its text and the other cells."""
    return {match["name"]: match["rest"].split(" | ") for match in _ROW.finditer(read(page))}


def table_under(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its first two lines."""
    section = read(page).partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]


def anchors(page: Path) -> set[str]:
    """Return the anchors GitHub makes of a page's headings."""
    headings = _HEADING.findall(without_fences(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_the_docs_exists(page: Path) -> None:
    """What a reader copies is a command, with options it has."""
    for command, rest in calls(page):
        assert command in COMMANDS, f"outbox {command}"
        known = {option for parameter in parameters(command, rest) for option in parameter.opts}
        assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= known, f"outbox {command}{rest}"


def test_commands_and_settings_are_written_from_the_code() -> None:
    """The pages of commands and settings are what `make docs` writes."""
    assert read(ROOT / "docs" / "commands.md") == reference.commands_page()
    assert read(ROOT / "docs" / "settings.md") == reference.settings_page()


def test_the_readme_fits_two_screens() -> None:
    """A reader has the whole of it in 110 lines."""
    assert len(read(PAGES[0]).splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_variable_in_the_docs_exists(page: Path) -> None:
    """No page speaks of an OUTBOX_ variable that nobody reads."""
    named = set(re.findall(r"OUTBOX_[A-Z][A-Z_]*", read(page)))
    of_the_soak = set(re.findall(r"OUTBOX_SOAK_[A-Z]+", read(ROOT / "tests" / "soak" / "test_soak.py")))

    assert named <= {*map(variable_of, Settings.model_fields), *secret_files()} | of_the_soak


def test_every_move_of_a_batch_is_drawn_and_explained() -> None:
    """The state diagram and the table of moves in architecture.md are `batches.MOVES`."""
    page = ARCHITECTURE
    moves = {f"{before} → {after}" for before, after in MOVES}
    drawn = re.findall(r"^ +(\w+) --> (\w+)$", "".join(fences(page, "mermaid")), re.MULTILINE)

    assert {f"{before} → {after}" for before, after in drawn} == moves
    assert {name: cells for name, cells in rows(page).items() if " → " in name}.keys() == moves


def test_the_floors_are_those_of_the_import_contract() -> None:
    """The first table of architecture.md has the floors and rooms of the contract, in its order."""
    contracts = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"].startswith("Imports only go down"))
    shown = [_SPAN.findall(cells[1]) for cells in table_under(ARCHITECTURE, "The floors")]

    assert shown == [floor.split(" | ") for floor in layers]


def test_every_file_under_where_to_look_exists() -> None:
    """Each question names files that are there, beginning with the one that answers it, and names that these hold."""
    questions = table_under(ARCHITECTURE, "Where to look")

    assert questions
    for question, *files in questions:
        spans = _SPAN.findall(" ".join(files))
        named = [span for span in spans if span.endswith((".py", ".sql"))]
        assert named, question
        text = "".join(read(ROOT / "outbox_pipeline" / path) for path in named)
        assert [span for span in spans if span not in named and span.rpartition(".")[2] not in text] == [], question


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_in_the_docs_exists(page: Path) -> None:
    """A promise that names its test names one that is there."""
    for path, name in re.findall(r"([\w/]+\.py)::(\w+)", read(page)):
        assert f"def {name}(" in read(ROOT / "tests" / path), f"{path}::{name}"


def test_each_guarantee_names_a_test() -> None:
    """Every heading under "What is guaranteed" has at least one test."""
    text = read(ROOT / "docs" / "guarantees.md")
    promised = text.partition("## What is guaranteed\n")[2].partition("\n## ")[0].split("\n### ")[1:]

    assert promised
    assert all(".py::test_" in promise for promise in promised)


def test_every_reason_is_documented() -> None:
    """publishing.md has a row for each reason an event is quarantined for, in their order, and for no other."""
    page = ROOT / "docs" / "publishing.md"
    text = read(page).partition("## Quarantine\n")[2]

    found = [match["name"] for match in _ROW.finditer(text)]
    assert found == [*map(str, Reason), ALREADY_DELIVERED, REFUSED_BY_CLICKHOUSE]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of this repository, and every anchor a heading in it."""
    for target in _LINK.findall(without_fences(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_compile_and_import_what_exists(page: Path) -> None:
    """A snippet is Python, and takes from this package what it has."""
    for snippet in fences(page, "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("outbox_pipeline"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_in_the_docs_exist(page: Path) -> None:
    """`make TARGET` is in the Makefile."""
    text = "\n".join([*fences(page, "sh", ""), *_SPAN.findall(without_fences(page))])
    targets = set(re.findall(r"^([a-z0-9-]+):", read(ROOT / "Makefile"), re.MULTILINE))

    assert set(re.findall(r"(?:^|\s)make ([a-z0-9-]+)", text)) <= targets


def test_linger_table_is_arithmetic() -> None:
    """The most runs a day are the day's seconds through the linger time, or through the tick without one."""
    text = read(ROOT / "docs" / "operating.md")
    table = re.findall(r"^\| (\d+) \| [^|]+ \| ([\d,]+) \|$", text, re.MULTILINE)
    tick = Settings.model_fields["sensor_interval_seconds"].default

    assert len(table) > 3
    for linger, most in table:
        assert int(most.replace(",", "")) == 86_400 // max(int(linger), tick)


def test_every_path_of_a_restore_is_rehearsed() -> None:
    """Each row of the table in restore.md leads to a section that a rehearsal compares with what was printed."""
    page = ROOT / "docs" / "restore.md"
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n)+)", read(page), re.MULTILINE)
    shown = {heading for heading, text in sections if "```console" in text}
    rehearsals = "".join(read(path) for path in (ROOT / "tests" / "failover").glob("test_*.py"))
    rows = table_under(page, "What happened, and what to do")
    linked = {anchor for row in rows for anchor in re.findall(r"\]\(#([\w-]+)\)", row[0])}

    assert shown == set(re.findall(r'assert_told\("([^"]+)"\)', rehearsals))
    assert {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown} == linked


#: Days that follow the time zone of a session, or of a server.
_LOCAL_DAY = re.compile(r"\b(?:today|yesterday)\(|\btoDate\(now\(\)|\bcurrent_date\b", re.IGNORECASE)


def test_statements_ask_for_days_of_utc() -> None:
    """What a reader copies, a board or an alert asks means the same day everywhere: the days of the log are UTC's."""
    statements = {page.name: fences(page, "sql", "sh") for page in PAGES}
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    statements |= {path.name: [path.read_text(encoding="utf-8")] for path in files}

    assert [name for name, asked in statements.items() if any(_LOCAL_DAY.search(one) for one in asked)] == []
    assert any("toDate(now('UTC'))" in one for asked in statements.values() for one in asked)
