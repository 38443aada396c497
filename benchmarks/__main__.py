"""Run every measurement that docs/benchmarks.md quotes, one after the other, then write its tables and draw its plots.

`python -m benchmarks [--quick] [NAME …]`; `--quick` takes small numbers, to see that everything works, and keeps its
figures in a folder for temporary files, away from those that the documentation quotes.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

from benchmarks.common import RESULTS_VARIABLE

#: Measurement → its arguments for a quick look; in the order they are run.
MEASUREMENTS: dict[str, list[str]] = {
    "relay": ["--contexts", "300:20000", "3000:2000"],
    "side_by_side": ["--events", "10000", "--loop-events", "2000", "--rounds", "1"],
    "through_dagster": ["--backlogs", "20000", "--relay-events", "20000"],
    "latency": ["--rates", "10", "100", "--seconds", "15"],
    "held_xmin": ["--minutes", "0.5", "--rate", "500"],
    "held_xmin_publishing": ["--minutes", "0.5", "--rate", "500"],
    "scaling": ["--events", "40000", "--relays", "1", "2"],
    "producer": ["--events", "20000", "--pairs", "300"],
    "ticks": ["--events", "200000", "--fragments", "30000", "--gaps", "40000", "--batches", "12000", "--cut", "50000"],
}

#: Measurements that are another program with options.
PROGRAMS: dict[str, list[str]] = {"held_xmin_publishing": ["held_xmin", "--publishing"]}


def main() -> int:
    """Run the named measurements, all of them without a name; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="small numbers, for a look at whether it works")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(MEASUREMENTS))
    if unknown:
        parser.error(f"There is no measurement {', '.join(unknown)}: {', '.join(MEASUREMENTS)}.")
    aside = Path(gettempdir()) / "outbox-benchmarks" if given.quick else None
    failed = [name for name in given.names or MEASUREMENTS if not _measure(name, aside)]
    failed += [step[0] for step in _presented(aside) if not _start(*step)]
    if failed:
        sys.stderr.write(f"Failed: {', '.join(failed)}.\n")
    return 1 if failed else 0


def _measure(name: str, aside: Path | None) -> bool:
    print(f"== {name}", flush=True)
    program = PROGRAMS.get(name, [name])
    if aside is None:
        return _start(*program)
    return _start(*program, *MEASUREMENTS[name], **{RESULTS_VARIABLE: str(aside)})


def _presented(aside: Path | None) -> list[list[str]]:
    # A quick look's figures go into no page.
    if aside is None:
        return [["tables"], ["plots"]]
    return [["plots", "--results", str(aside), "--into", str(aside)]]


def _start(program: str, *options: str, **environment: str) -> bool:
    command = [sys.executable, "-m", f"benchmarks.{program}", *options]
    return subprocess.run(command, check=False, env={**environment, **os.environ}).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
