"""The fixture `outbox` for an application's tests that pytest runs."""

from collections.abc import Iterator

import pytest

from outbox_pipeline.testing.recorder import Outbox, recorded


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    """The events this test publishes: `outbox.published(UserCreated)`, `outbox.published()`."""
    with recorded() as recorder:
        yield recorder
