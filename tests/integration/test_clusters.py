"""The cluster that `make test-postgres15` runs on leaves nothing behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from outbox_pipeline.processes import identify, wait_until

#: Debian's, as in the Makefile.
PROGRAMS = Path("/usr/lib/postgresql/15/bin")

ROOT = Path(__file__).parents[2]

_SCRIPT = """
import json, sys, time
from pathlib import Path
from tests.fixtures.clusters import running_cluster

with running_cluster(Path(sys.argv[1])) as cluster, cluster.connect() as connection:
    row = connection.execute("SELECT current_setting('wal_level'), current_setting('data_directory')").fetchone()
    print(json.dumps(row), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not (PROGRAMS / "postgres").exists(), reason=f"PostgreSQL 15 is not in {PROGRAMS}")
def test_a_cluster_goes_with_the_process_that_started_it() -> None:
    """Killed as the kernel kills it, pytest leaves neither a server nor its data, in memory or elsewhere."""
    command = [sys.executable, "-c", _SCRIPT, str(PROGRAMS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        wal_level, data = json.loads(process.stdout.readline())
        server = identify(int((Path(data) / "postmaster.pid").read_text().splitlines()[0]))
        assert server is not None
        assert psutil.Process(server.pid).name() == "postgres"

        process.send_signal(signal.SIGKILL)

    assert wal_level == "logical"
    assert wait_until(lambda: not server.is_alive() and not Path(data).parent.exists(), seconds=60)
