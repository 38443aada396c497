"""What the measurements share: engines of their own, an outbox full of events, peak memory, figures kept as JSON.

Events are 1,000 different JSON contexts of a wanted size, made from a fixed seed, of eight types; each event carries
its own number, so no two are equal. Half of a context is hexadecimal noise and half words, so that it compresses no
better than real payloads do.
"""

import json
import math
import os
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from pydantic import SecretStr
from sqlalchemy import Engine, text

from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse
from outbox_pipeline.embedded.engines import embedded_engines, running_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.postgres import running_postgres
from outbox_pipeline.logs import configure_logs
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores, open_stores

#: Where the figures that docs/benchmarks.md quotes are kept.
RESULTS = Path(__file__).parent / "results"

#: Environment variable with another folder for the figures, so that a quick look does not replace those.
RESULTS_VARIABLE = "BENCHMARK_RESULTS"

_QUIET_SECONDS = 300

_TEMPLATES = 1_000
_PARTS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_WORDS = ("order", "customer", "shipped", "refunded", "Zürich", "kettle", "grinder", "priority", "invoice", "visit")

_PUBLISH = text(
    "INSERT INTO outbox.event (event_type, environment, event_context)"
    " SELECT 'type_' || n % 8, 'benchmark', replace(body, '#number#', n::text)::json"
    " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n"
    " JOIN benchmark_context ON nth = n % :templates"
)


@contextmanager
def fresh_stores(*, more_grants: Sequence[str] = (), **settings: Any) -> Iterator[Stores]:
    """Run embedded engines on an empty home and open both stores, as `outbox init` leaves them.

    *settings* override the defaults, those of child processes too. ClickHouse has *more_grants* beside the usual ones,
    and is then not shut off from the machine.
    """
    with TemporaryDirectory(prefix="outbox-bench-") as home, embedded_engines(Path(home), clickhouse=False):
        place = Home(Path(home).resolve())
        with locked(place):
            start_clickhouse(place, more_grants=more_grants)
        urls = running_engines(Path(home))
        assert urls.postgres
        assert urls.clickhouse
        assert urls.dagster
        # Child processes of a measurement read the same places from their environment.
        os.environ |= {
            "OUTBOX_HOME": home,
            "OUTBOX_POSTGRES_URL": urls.postgres,
            "OUTBOX_CLICKHOUSE_URL": urls.clickhouse,
            "OUTBOX_DAGSTER_URL": urls.dagster,
            "OUTBOX_LOG_LEVEL": "WARNING",
            **{f"OUTBOX_{name.upper()}": str(value) for name, value in settings.items()},
        }
        made = Settings(
            **settings,
            postgres_url=SecretStr(urls.postgres),
            clickhouse_url=SecretStr(urls.clickhouse),
            dagster_url=SecretStr(urls.dagster),
        )
        configure_logs(made)
        with open_stores(made) as stores:
            migrate(stores.engine)
            create_table(stores.client)
            claim_table(stores)
            yield stores


def contexts(size: int) -> list[str]:
    """Return the JSON texts of *size* bytes that events are made of, each with a place for the event's number."""
    dice = random.Random(size)
    return [_context(dice, size) for _ in range(_TEMPLATES)]


def publish(engine: Engine, count: int, *, size: int = 300, first: int = 1, transaction: int = 50_000) -> None:
    """Commit *count* events of *size* bytes by SQL, *transaction* events in each transaction."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS benchmark_context"))
        connection.execute(text("CREATE UNLOGGED TABLE benchmark_context (nth integer PRIMARY KEY, body text)"))
        rows = [{"nth": nth, "body": body} for nth, body in enumerate(contexts(size))]
        connection.execute(text("INSERT INTO benchmark_context VALUES (:nth, :body)"), rows)
    step = max(1, min(transaction, 100_000_000 // size))
    for start in range(first, first + count, step):
        last = min(start + step, first + count) - 1
        with engine.begin() as connection:
            connection.execute(_PUBLISH, {"first": start, "last": last, "templates": _TEMPLATES})


def vacuum(engine: Engine) -> None:
    """Do what autovacuum does sooner or later, so that it does not begin in the middle of a measurement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99, nearest rank, and the largest; empty without values."""
    ranked = sorted(values)
    if not ranked:
        return {}
    ranks = {name: ranked[min(len(ranked), math.ceil(len(ranked) * part)) - 1] for name, part in _PARTS.items()}
    return {name: round(value, 3) for name, value in {**ranks, "max": ranked[-1]}.items()}


def wait_for_merges(stores: Stores) -> None:
    """Wait until ClickHouse has merged what earlier inserts left, so that nobody else's merges slow a measurement."""

    def are_over() -> bool:
        return not stores.client.rows("SELECT 1 FROM system.merges LIMIT 1")

    if not wait_until(are_over, seconds=_QUIET_SECONDS):
        raise RuntimeError(f"ClickHouse still merges after {_QUIET_SECONDS} s: look what else uses it.")


def count_delivered(stores: Stores, *, after: int, until: int) -> int:
    """Return how many events of these positions are in ClickHouse; raises when one is there twice."""
    row = stores.client.rows(
        "SELECT count() AS rows, uniqExact(position) AS positions, uniqExact(event_id) AS ids FROM {table:Identifier}"
        " WHERE position > {after:UInt64} AND position <= {until:UInt64}",
        {"after": after, "until": until},
    )[0]
    if not row["rows"] == row["positions"] == row["ids"]:
        raise RuntimeError(f"Events are doubled: {row}.")
    return int(row["rows"])


def last_position(engine: Engine) -> int:
    """Return the position of the last event published, 0 when there is none."""
    with engine.begin() as connection:
        return int(connection.scalar(text("SELECT coalesce(max(position), 0) FROM outbox.event")) or 0)


class PeakMemory:
    """The most resident memory of a process since this was made, as the kernel counts it (Linux)."""

    def __init__(self, pid: int) -> None:
        """Set the kernel's high-water mark back to what the process has now."""
        self._folder = Path("/proc") / str(pid)
        # 5 is "reset the peak resident set size", man proc_pid_clear_refs.
        (self._folder / "clear_refs").write_text("5")
        self.before_mb = self.peak_mb

    @property
    def peak_mb(self) -> int:
        """The peak until now in megabytes."""
        lines = (self._folder / "status").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return round(int(kilobytes) * 1024 / 1e6)


def engine_pids() -> dict[str, int]:
    """Return the processes of the engines that `fresh_stores` runs: `postgres` (the postmaster) and `clickhouse`."""
    home = Home(Path(os.environ["OUTBOX_HOME"]).resolve())
    postgres, clickhouse = running_postgres(home), running_clickhouse(home)
    assert postgres is not None
    assert clickhouse is not None
    return {"postgres": postgres.pid, "clickhouse": clickhouse.pid}


def cpu_seconds(pid: int, *, with_children: bool = False) -> float:
    """Return the processor time that a process has used until now; with those of its children, ended ones too."""
    process = psutil.Process(pid)
    used = sum(process.cpu_times()[: 4 if with_children else 2])
    for child in process.children() if with_children else ():
        with suppress(psutil.NoSuchProcess):
            used += sum(child.cpu_times()[:2])
    return used


def machine() -> dict[str, Any]:
    """Describe where a figure was taken."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in ("chdb-core", "dagster", "clickhouse-connect", "pyarrow", "pandas")},
    }


def save(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and keep them with the machine, the date and the command as `results/<name>.json`.

    `BENCHMARK_RESULTS` names another folder.
    """
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    kept = {"command": command, "taken_at": taken, "machine": machine(), "figures": figures}
    shown = json.dumps(kept, indent=2)
    print(shown)
    folder = Path(os.environ.get(RESULTS_VARIABLE) or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(f"{shown}\n")


def _context(dice: random.Random, size: int) -> str:
    members = {"number": "#number#", "type": dice.choice(_WORDS)}
    empty = len(json.dumps({**members, "note": "", "blob": ""}, ensure_ascii=False).encode())
    half = max(0, size - empty) // 2
    blob = dice.randbytes(half // 2 + 1).hex()[:half]
    note = " ".join(dice.choice(_WORDS) for _ in range(half // 4 + 1)).encode()[:half].decode(errors="ignore")
    return json.dumps({**members, "note": note, "blob": blob}, ensure_ascii=False)


def _processor() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model n" in line
    ]
    return names[0] if names else platform.machine()
