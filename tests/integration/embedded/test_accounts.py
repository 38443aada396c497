"""The account of the embedded PostgreSQL, made where root has none yet."""

import os
import pwd
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from outbox_pipeline.embedded import accounts
from tests.fixtures.accounts import needs_root


@needs_root
def test_processes_that_start_at_once_make_one_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first engines of several processes agree on the account that they run as."""
    name = f"pgserver-{os.getpid()}"
    monkeypatch.setattr(accounts, "_NAME", name)
    try:
        with ProcessPoolExecutor(6, mp_context=get_context("fork")) as processes:
            made = [processes.submit(accounts.server_account) for _ in range(6)]
            found = [each.result() for each in made]
        entry = pwd.getpwnam(name)
    finally:
        subprocess.run(["userdel", name], capture_output=True)

    assert found == [accounts.Account(name, entry.pw_uid, entry.pw_gid)] * 6
