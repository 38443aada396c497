"""The same for tests that unittest or Django's `manage.py test` runs."""

from typing import TYPE_CHECKING, Any

from outbox_pipeline.testing.recorder import Outbox, recorded

if TYPE_CHECKING:
    from unittest import TestCase as _Base
else:
    _Base = object


class OutboxTestMixin(_Base):
    """Gives each test `self.outbox`, the events that it publishes from `setUp` to the last cleanup.

    Named before the class of the tests: `class TestOrders(OutboxTestMixin, TestCase)`. What `setUpTestData` and
    `setUpClass` publish belongs to no test.
    """

    outbox: Outbox

    def run(self, result: Any = None) -> Any:
        """Run the test while what it publishes is recorded."""
        with recorded() as self.outbox:
            return super().run(result)

    def debug(self) -> None:
        """Run the test as `run` does, without collecting errors."""
        with recorded() as self.outbox:
            super().debug()
