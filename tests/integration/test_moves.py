"""The record of moves in the test databases: what is committed, and nothing that a test says it moves by hand."""

from sqlalchemy import Engine, text

from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.events import publish
from tests.fixtures.moves import by_hand, move_by_hand


def taken_record(engine: Engine) -> list[tuple[str | None, str]]:
    """Return the moves that this test's database has recorded, in their order, and forget them."""
    statement = text("WITH made AS (DELETE FROM outbox_tests.move RETURNING *) SELECT before, after FROM made")
    with engine.begin() as connection:
        return [(row.before, row.after) for row in connection.execute(statement)]


def test_the_moves_of_a_delivery_are_recorded(stores: Stores) -> None:
    """From the first status to the last, in their order."""
    publish(stores.engine, 1)
    start(stores).finish()

    assert taken_record(stores.engine) == [
        (None, "cut"),
        ("cut", "requested"),
        ("requested", "delivering"),
        ("delivering", "processed"),
    ]


def test_what_is_not_committed_or_is_made_by_hand_is_no_move(stores: Stores) -> None:
    """Each statement that sets a status counts, whatever the session's replication role, once it is committed."""
    publish(stores.engine, 1)
    start(stores).finish()
    taken_record(stores.engine)
    for is_committed in (True, False):
        with stores.engine.connect() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("UPDATE outbox.batch SET status = status"))
            connection.commit() if is_committed else connection.rollback()
    move_by_hand(stores.engine, "UPDATE outbox.batch SET status = 'parked'")
    with stores.engine.begin() as connection:
        by_hand(connection).execute(text("UPDATE outbox.batch SET status = 'failed'"))
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET last_error = 'no move'"))

    assert taken_record(stores.engine) == [("processed", "processed")]
