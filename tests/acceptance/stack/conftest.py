"""The stack that this folder's tests share; it ends with the last of them."""

from collections.abc import Iterator

import pytest

from tests.fixtures.servers import Servers
from tests.fixtures.stack import Running, running_stack


@pytest.fixture(scope="package")
def running(servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Dagster's processes on databases of their own."""
    with running_stack(servers, migrated_template, tmp_path_factory.mktemp("stack"), eager=True) as stack:
        yield stack
