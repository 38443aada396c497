"""Write the figures of `results/*.json` into the documentation, so that no page quotes a figure that was not measured.

`python -m benchmarks.tables`

A page has a pair of comments for each block, `<!-- figures:NAME -->` and `<!-- end -->`; what stands between them is
written here. Where a result is missing the block says how to get it. A test renders every page again and compares.
"""

import json
import re
from pathlib import Path

from benchmarks.blocks import BLOCKS, Figures

RESULTS = Path(__file__).parent / "results"
PAGES = Path(__file__).parents[1] / "docs"

_BLOCK = re.compile(
    r"(?P<open><!-- figures:(?P<name>[\w-]+) -->\n).*?(?P<close><!-- end -->)", re.MULTILINE | re.DOTALL
)


def read_results(folder: Path = RESULTS) -> dict[str, Figures]:
    """Return every result by its name; empty when nothing was measured."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def render(page: str, results: dict[str, Figures]) -> str:
    """Return the page with every block written from these results. Raises KeyError for a block nobody writes."""
    return _BLOCK.sub(lambda match: match["open"] + block(match["name"], results) + match["close"], page)


def block(name: str, results: dict[str, Figures]) -> str:
    """Return the lines of one block, each with its line end."""
    made = BLOCKS[name]
    if made.source not in results:
        return f"Not measured yet: `{_command(made.source)}` does.\n"
    result = results[made.source]
    others = [results.get(other, {}).get("figures") for other in made.others]
    lines = made.write(result["figures"], *others)
    if made.picture:
        lines = [f"![{made.picture}](images/benchmarks/{made.source}.svg)", "", *lines]
    taken = [_taken(results[name]) for name in (made.source, *made.others) if name in results]
    return "".join(f"{line}\n" for line in [*lines, "", *taken])


def _command(source: str) -> str:
    return f"python -m benchmarks {source}"


def _taken(result: Figures) -> str:
    machine = result["machine"]
    return (
        f"Taken on {result['taken_at'][:10]} with `{result['command']}`: {machine['cores']} cores"
        f" ({machine['processor']}), {machine['memory_gb']} GB, Python {machine['python']},"
        f" load before {machine['load_before']}."
    )


def main() -> None:
    """Write every block of every page."""
    results = read_results()
    for page in sorted(PAGES.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = render(before, results)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"Wrote the figures of {page.name}.")


if __name__ == "__main__":
    main()
