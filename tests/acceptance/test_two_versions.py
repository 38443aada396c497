"""Two releases work on one outbox while the newer one migrates it under load: nothing is lost, doubled or parked."""

from outbox_pipeline.stores import Stores
from tests.fixtures.next_release import NextRelease
from tests.fixtures.releases import Hire, share_an_outbox


def test_old_and_new_workers_share_an_outbox_while_it_is_migrated(
    stores: Stores, hire: Hire, next_release: NextRelease
) -> None:
    """Workers of this release go on through the migration, and those of the next one join them."""
    old = hire(stores, None, publish=1, deliver=2, tend=1)
    new = hire(stores, next_release.environment(), publish=1, deliver=1)

    share_an_outbox(stores, old, new)
