"""The cluster that a file's tests share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.servers import Servers

if TYPE_CHECKING:
    from tests.fixtures.kubernetes import OnKubernetes


@pytest.fixture(scope="module")
def stack(
    servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[OnKubernetes]":
    """Dagster on a cluster, with short times."""
    # Not above: pytest looks into the assertions of a plugin only when nothing has imported it before.
    from tests.fixtures.kubernetes import SHORT_MONITORING, SHORT_TIMES, new_folder, on_kubernetes

    folder = new_folder(tmp_path_factory)
    with on_kubernetes(
        servers, migrated_template, folder, settings=SHORT_TIMES, instance=SHORT_MONITORING, eager=True
    ) as running:
        yield running
