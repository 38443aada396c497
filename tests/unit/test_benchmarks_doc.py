"""The figures in the documentation are those in benchmarks/results, and nobody edits them by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as every
from benchmarks.blocks import BLOCKS, CONTENDERS, number, table
from benchmarks.side_by_side import contenders
from benchmarks.tables import PAGES, block, read_results, render

WITH_FIGURES = [page for page in sorted(PAGES.glob("*.md")) if "<!-- figures:" in page.read_text(encoding="utf-8")]
BENCHMARKS = Path(every.__file__).parent

MACHINE = {"cores": 2, "processor": "a processor", "memory_gb": 8, "python": "3.11.7", "load_before": 0.1}


def result(figures: dict[str, Any]) -> dict[str, Any]:
    """Return a result as `save` keeps it."""
    return {
        "command": "python -m benchmarks.x",
        "taken_at": "2026-01-02T03:04:05",
        "machine": MACHINE,
        "figures": figures,
    }


def scaling(events_per_second: int) -> dict[str, Any]:
    """Return a made-up result of `scaling`."""
    rounds = [{"relays": 1, "events_per_second": events_per_second, "times_the_first": 1.0, "batches": 20}]
    return {"scaling": result({"rounds": rounds})}


@pytest.mark.parametrize("page", WITH_FIGURES, ids=lambda page: page.name)
def test_every_figure_is_the_one_that_was_measured(page: Path) -> None:
    """Each block of each page is what `python -m benchmarks.tables` writes from the results that are here."""
    text = page.read_text(encoding="utf-8")

    assert render(text, read_results()) == text, "Run 'python -m benchmarks.tables'."


def test_every_block_stands_in_a_page() -> None:
    """A result that is written somewhere is read by somebody, and every block of a page has a writer."""
    named = re.findall(r"^<!-- figures:([\w-]+) -->$", "\n".join(map(Path.read_text, WITH_FIGURES)), re.MULTILINE)

    assert sorted(named) == sorted(BLOCKS)


def test_a_figure_edited_by_hand_is_replaced() -> None:
    """What stands between the comments comes from the results alone; what is around them stays."""
    page = "before\n<!-- figures:scaling -->\n| 1 | 999,999 |\n<!-- end -->\nafter\n"

    written = render(page, scaling(123_456))

    assert "| 1 | 123,456 | 1 | 20 |\n" in written
    assert "999,999" not in written
    assert written.startswith("before\n<!-- figures:scaling -->\n")
    assert written.endswith("<!-- end -->\nafter\n")
    assert render(written, scaling(123_456)) == written


def test_a_missing_result_says_how_to_get_it() -> None:
    """A page without measurements is a page, not an error."""
    for name, made in BLOCKS.items():
        assert re.fullmatch(r"Not measured yet: `python -m benchmarks \w+` does\.\n", block(name, {})), made.source


def test_a_block_says_where_its_figures_come_from() -> None:
    """Date, command, machine and load stand below each table, and the picture above it."""
    lines = block("scaling", scaling(1_000)).splitlines()

    assert lines[0] == "![Events a second of one, two and four relays together](images/benchmarks/scaling.svg)"
    assert lines[-1].startswith("Taken on 2026-01-02 with `python -m benchmarks.x`: 2 cores (a processor), 8 GB")
    assert lines[-1].endswith("load before 0.1.")


def test_an_unknown_block_is_refused() -> None:
    """A comment with a spelling mistake does not stay empty unnoticed."""
    with pytest.raises(KeyError, match="scalling"):
        render("<!-- figures:scalling -->\n<!-- end -->\n", {})


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (1_234_567, "1,234,567"), (1234.5, "1,234"), (12.345, "12.3"), (0.98765, "0.988"), (2.0, "2")],
)
def test_numbers_are_written_with_the_digits_they_are_worth(value: float, written: str) -> None:
    """Three digits, or all of a count."""
    assert number(value) == written


def test_tables_are_markdown() -> None:
    """The first column is text, the others are figures, aligned to the right."""
    assert table(("a", "b"), [("x", 1)]) == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


def test_every_contender_has_a_name_in_the_tables() -> None:
    """Readers see what a contender is, not what it is called in the results."""
    assert contenders(1).keys() <= CONTENDERS.keys()


def test_every_picture_has_its_result() -> None:
    """No picture outlives the measurement it shows."""
    pictures = {path.stem for path in (PAGES / "images" / "benchmarks").glob("*.svg")}

    assert pictures <= read_results().keys()


def test_every_measurement_of_make_bench_is_a_program() -> None:
    """`python -m benchmarks` starts modules that are here."""
    for name in every.MEASUREMENTS:
        program = every.PROGRAMS.get(name, [name])[0]
        assert (BENCHMARKS / f"{program}.py").exists(), name


def test_results_name_no_place_of_the_machine() -> None:
    """What is committed says what the machine is, not where its files are."""
    for name, found in read_results().items():
        assert not re.search(r"/(tmp|home|root|var)/", json.dumps(found)), name
