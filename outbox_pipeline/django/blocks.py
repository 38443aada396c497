"""In which order the atomic blocks of a thread's connections were entered, which Django does not keep.

Django opens one transaction for each database and looks at none but the one that is named. An event that names none is
written through the connection that the routers name, also inside of a later `atomic` of another database, where it
would stay although the business is rolled back.

Invariant: of a connection that was opened before this app was ready nothing is known, and nothing is refused for it.
The block that Django's TestCase puts around a test is none of the application's.
"""

from itertools import count
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created

_moments = count(1)


class OrderedBlocks(list[Any]):
    """The atomic blocks that a connection is in, and the moment at which each was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[int] = []

    def append(self, block: Any) -> None:
        """Enter a block."""
        super().append(block)
        self.moments.append(next(_moments))

    def pop(self, *place: Any) -> Any:
        """Leave the innermost block."""
        self.moments.pop(*place)
        return super().pop(*place)

    @property
    def latest(self) -> int:
        """The moment at which the application's innermost block was entered, 0 when it is in none."""
        entered = zip(self, self.moments, strict=True)
        return max((moment for block, moment in entered if not is_of_testcase(block)), default=0)


def is_of_testcase(block: Any) -> bool:
    """Tell whether a block is the one that Django's TestCase puts around a test."""
    return bool(getattr(block, "_from_testcase", False))


def keep_order() -> None:
    """Keep the order of blocks on every connection that is opened from now on."""
    connection_created.connect(_keep_order, dispatch_uid="outbox_pipeline.django.blocks")


def _keep_order(connection: Any, **_: Any) -> None:
    # Django has made a new list right before, in which nothing is yet.
    if connection.vendor == "postgresql" and not connection.atomic_blocks:
        connection.atomic_blocks = OrderedBlocks()


def entered_later(alias: str) -> str | None:
    """Return the PostgreSQL database whose atomic block was entered last.

    None when it is *alias*, when there is none, and when it is not known when the blocks of *alias* were entered.
    """
    if connections[alias].in_atomic_block and not isinstance(connections[alias].atomic_blocks, OrderedBlocks):
        return None
    moments = {one.alias: _latest(one) for one in connections.all(initialized_only=True)}
    last = max(moments, key=lambda name: moments[name], default=alias)
    return last if moments.get(last, 0) > moments.get(alias, 0) else None


def _latest(connection: Any) -> int:
    blocks = connection.atomic_blocks
    return blocks.latest if connection.in_atomic_block and isinstance(blocks, OrderedBlocks) else 0
