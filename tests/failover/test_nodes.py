"""The servers of the rehearsals leave nothing behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from outbox_pipeline.processes import identify, wait_until
from tests.fixtures.nodes import postgres_programs

pytestmark = pytest.mark.failover

ROOT = Path(__file__).parents[2]

_SCRIPT = """
import json, sys, time
from pathlib import Path
from outbox_pipeline.embedded.accounts import server_account
from tests.fixtures.clusters import initialise, reserved_port
from tests.fixtures.nodes import Node, kept_folder

with kept_folder() as folder, reserved_port() as port:
    initialise(Path(sys.argv[1]), folder, server_account())
    node = Node(Path(sys.argv[1]), folder / "data", port)
    node.start()
    print(json.dumps(str(node.data)), flush=True)
    time.sleep(600)
"""


def test_a_server_goes_with_the_process_that_started_it() -> None:
    """Killed as the kernel kills it, pytest leaves neither a server nor its data, in memory or elsewhere."""
    command = [sys.executable, "-c", _SCRIPT, str(postgres_programs())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        data = Path(json.loads(process.stdout.readline()))
        server = identify(int((data / "postmaster.pid").read_text().splitlines()[0]))
        assert server is not None
        assert psutil.Process(server.pid).name() == "postgres"

        process.send_signal(signal.SIGKILL)

    assert wait_until(lambda: not server.is_alive() and not data.parent.exists(), seconds=60)
