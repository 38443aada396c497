"""The process of `outbox relay --until-empty` uses the memory of one batch again for the next."""

import json
import subprocess
import sys

import pytest

from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish

_RELAY_THEN_ALLOCATE = """
import json, resource
from concurrent.futures import ThreadPoolExecutor
from outbox_pipeline.cli.main import app

def pages_faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 100_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

app(["relay", "--until-empty"], standalone_mode=False)
with ThreadPoolExecutor(1) as worker:
    first, second = (worker.submit(pages_faulted).result() for _ in range(2))
print(json.dumps([first, second]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library decides")
def test_freed_memory_is_there_for_the_next_batch(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB, allocated in a thread as batches are, cost the kernel pages once."""
    for name in ("postgres_url", "clickhouse_url"):
        monkeypatch.setenv(f"OUTBOX_{name.upper()}", getattr(stores.settings, name).get_secret_value())
    publish(stores.engine, 1)

    done = subprocess.run([sys.executable, "-c", _RELAY_THEN_ALLOCATE], capture_output=True, text=True, check=True)
    first, second = json.loads(done.stdout.splitlines()[-1])

    # Compared, because how many pages 100 MB are depends on the kernel's large pages.
    assert second < first / 10
