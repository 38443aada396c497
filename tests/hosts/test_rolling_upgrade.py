"""An upgrade host by host: the first one migrates and works with the next release, the other goes on with this one."""

import pytest

from outbox_pipeline.stores import Stores
from tests.fixtures.hosts import Hosts
from tests.fixtures.next_release import NextRelease
from tests.fixtures.releases import Hire, share_an_outbox

pytestmark = pytest.mark.hosts


def test_hosts_are_upgraded_one_after_the_other(
    stores: Stores, hosts: Hosts, hire: Hire, next_release: NextRelease
) -> None:
    """Both go on publishing and delivering; every event of both is there once, and nothing is parked."""
    first, second = hosts.workers
    old = hire(stores, None, on=lambda command: first.command(*command), publish=1, deliver=2, tend=1)
    new = hire(stores, next_release.environment(), on=lambda command: second.command(*command), publish=1, deliver=1)

    share_an_outbox(stores, old, new)
