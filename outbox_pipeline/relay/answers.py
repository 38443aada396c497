"""What follows when ClickHouse answered an insert with an error, though the event log may have taken its rows.

A view behind the log works within the insert: what it throws is the answer to the whole, and the log has its rows by
then. A later look finds them, and nothing of what the view lacks. So the ledger keeps that the insert of a generation
was answered with an error, and until another one is taken its rows in the log are no proof.

Invariant: such a batch is sent again under the same token, so that the log drops what it has and the view takes it; and
by itself only where the target of each view drops what it has as well. Anything else a person decides.
"""

from collections.abc import Sequence

from outbox_pipeline.batches import Batch
from outbox_pipeline.clickhouse.errors import LIMIT_CODES
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse
from outbox_pipeline.clickhouse.views import View, views_behind
from outbox_pipeline.errors import Answer, BatchDataError, OutboxError, TransientError, ViewError
from outbox_pipeline.stores import Stores


def is_owed_to_views(stores: Stores, batch: Batch) -> bool:
    """Tell whether a view may lack rows of the batch that the log has, so that it has to be sent again.

    Raises ViewError where rows would stand twice behind a view after that, unless a person has resumed the batch.
    """
    views = views_behind(stores.client)
    if not views or not _has_rows(stores, batch, batch.generation):
        return False
    if not batch.may_resend:
        _require_windows(stores, batch, views, "")
    return True


def raise_for_view(stores: Stores, batch: Batch, generation: int, error: OutboxError, *, is_owed: bool) -> None:
    """Raise what it means that the insert of *generation* was answered with *error* while the log has rows of it.

    *is_owed* says that the log had them before, and that they were sent again for its views. Raises ViewError, which is
    final when a view refuses them again and where they would stand twice. Comes back when the log itself may be the
    reason, or the server, which may lack memory, disk or time for a view.
    """
    if isinstance(error, TransientError) or error.answer is None:
        return
    views = views_behind(stores.client)
    if not views or not (is_owed or _has_rows(stores, batch, generation)):
        return
    named = [view for name in error.answer.views for view in views if view.name == name][:1]
    is_theirs = isinstance(error, BatchDataError) or (named and error.answer.code not in LIMIT_CODES)
    if is_owed and is_theirs:
        raise ViewError(_refused_again(stores, batch, named or views, error.answer), is_final=True)
    if not is_owed:
        _require_windows(stores, batch, views, _briefly(named, error.answer))
    if is_theirs:
        raise ViewError(_refused(stores, batch, named or views, error.answer), is_final=False)


def _require_windows(stores: Stores, batch: Batch, views: Sequence[View], answer: str) -> None:
    doubling = [view for view in views if not view.has_window]
    if doubling:
        named = " and ".join(f"view {view.name} fills {_target(view)}" for view in doubling)
        raise ViewError(
            f"ClickHouse answered the insert of batch {batch.batch_id} with an error{answer} and "
            f"{stores.client.table} has its rows; sent again they could stand twice, because {named}, which has no "
            "deduplication window: correct the view that failed, delete what such targets have of the batch, or drop "
            f"their views, then run 'outbox resume {batch.batch_id}'.",
            is_final=True,
        )


def _target(view: View) -> str:
    return view.target or "a table that this user may not see"


def _refused(stores: Stores, batch: Batch, views: Sequence[View], answer: Answer) -> str:
    return (
        f"{_named(views)} behind {stores.client.table} refused the rows of batch {batch.batch_id}: correct or drop the "
        f"view; the batch is sent to it once more by itself. ClickHouse said {answer.said}"
    )


def _refused_again(stores: Stores, batch: Batch, views: Sequence[View], answer: Answer) -> str:
    return (
        f"{_named(views)} behind {stores.client.table} refused the rows of batch {batch.batch_id} again, so "
        f"{stores.client.table} has them and the view's target does not: correct or drop the view, then run "
        f"'outbox resume {batch.batch_id}', which sends them once more. ClickHouse said {answer.said}"
    )


def _named(views: Sequence[View]) -> str:
    return "View " + " or ".join(view.name for view in views)


def _briefly(views: Sequence[View], answer: Answer) -> str:
    # The ledger keeps the first 500 characters, and what to do must be among them.
    return f" ({', '.join([f'code {answer.code}', *(f'view {view.name}' for view in views)])})"


def _has_rows(stores: Stores, batch: Batch, generation: int) -> bool:
    found, foreign_count = proof_in_clickhouse(stores.client, batch, generation=generation)
    return found.row_count > foreign_count
