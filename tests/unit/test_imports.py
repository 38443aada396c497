"""What the tests import: fixtures and the package, and neither each other nor the programs that measure."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
#: These two are about the programs that measure.
OF_BENCHMARKS = {"test_benchmarks.py", "test_benchmarks_doc.py"}


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, and what it takes from them as if each were a module too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_of_tests_imports_another() -> None:
    """What several need is in tests/fixtures, so a test can be read, moved and run by itself."""
    files = [file for file in TESTS.rglob("*.py") if file.parent.name != "fixtures"]
    wrong = [f"{file.name}: {name}" for file in files for name in imported(file) if ".test_" in f".{name}"]

    assert len(files) > 100
    assert [line for line in wrong if "tests." in line] == []


def test_the_measurements_are_not_part_of_the_suite() -> None:
    """A figure of a test does not move when somebody changes how something is measured."""
    files = [file for file in TESTS.rglob("*.py") if file.name not in OF_BENCHMARKS]

    assert [file.name for file in files for name in imported(file) if name.split(".")[0] == "benchmarks"] == []
