"""Runs of `outbox up` are forked from a process that has done their imports."""

import subprocess
import sys

import pytest

_PROGRAM = """
import multiprocessing, sys
from outbox_pipeline.orchestration import code_server

def loaded(answer):
    answer.put(set(code_server._PRELOADED) <= set(sys.modules))

if __name__ == "__main__":
    code_server.fork_runs()
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    run = context.Process(target=loaded, args=(answer,))
    run.start()
    print(answer.get(timeout=60), "dagster" in sys.modules)
    run.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere runs start in a fresh interpreter")
def test_run_starts_with_everything_imported(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A process asked for as Dagster asks for a run's has all that is preloaded before it does anything."""
    for name, url in (("POSTGRES", "postgresql+psycopg://nobody@127.0.0.1:1/db"), ("CLICKHOUSE", "http://127.0.0.1:1")):
        monkeypatch.setenv(f"OUTBOX_{name}_URL", url)
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=90, check=True)

    assert done.stdout.split() == ["True", "False"], done.stderr
