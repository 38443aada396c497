"""The stack that `outbox up` watches over."""

import os
from pathlib import Path

from outbox_pipeline.orchestration.host.stack import DagsterStack, StackPlan
from outbox_pipeline.processes import ProcessIdentity, identify


def ended_process() -> ProcessIdentity:
    """Return which process one was that has ended."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    identity = identify(pid)
    os.waitpid(pid, 0)
    assert identity is not None
    return identity


def test_a_process_that_cannot_be_started_again_is_left_to_the_next_look(tmp_path: Path) -> None:
    """A folder that cannot be written, or a full disk, ends neither the other processes nor who watches over them."""
    stack = DagsterStack(StackPlan(tmp_path, 1, tmp_path / "code.sock", "module"), {})
    stack.processes["daemon"] = ended_process()
    (tmp_path / "logs").touch()

    assert stack.revive() == []
    assert not stack.processes["daemon"].is_alive()
