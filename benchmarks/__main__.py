"""Run every measurement that docs/benchmarks.md quotes, one after the other, and draw the plots.

`python -m benchmarks [--quick] [NAME …]`; `--quick` takes small numbers, to see that everything works.
"""

import argparse
import subprocess
import sys

#: Measurement → its arguments for a quick look; in the order they are run.
MEASUREMENTS: dict[str, list[str]] = {
    "producer": ["--events", "20000", "--pairs", "300"],
    "ticks": ["--events", "200000", "--fragments", "30000", "--gaps", "40000", "--batches", "12000", "--cut", "50000"],
}


def main() -> int:
    """Run the named measurements, all of them without a name; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="small numbers, for a look at whether it works")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(MEASUREMENTS))
    if unknown:
        parser.error(f"There is no measurement {', '.join(unknown)}: {', '.join(MEASUREMENTS)}.")
    failed = [name for name in given.names or MEASUREMENTS if _run(name, quick=given.quick) != 0]
    if failed:
        sys.stderr.write(f"Failed: {', '.join(failed)}.\n")
    return 1 if failed else 0


def _run(name: str, *, quick: bool) -> int:
    print(f"== {name}", flush=True)
    options = MEASUREMENTS[name] if quick else []
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
