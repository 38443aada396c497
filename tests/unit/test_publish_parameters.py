"""The parameters of a statement in each driver's style."""

from outbox_pipeline.publish.parameters import numbered, pyformat


def test_names_become_what_psycopg_and_django_take() -> None:
    """Every name, also a repeated one, is taken by its name."""
    assert pyformat("VALUES (:event_id, CAST(:b2 AS text), :event_id)") == (
        "VALUES (%(event_id)s, CAST(%(b2)s AS text), %(event_id)s)"
    )


def test_names_become_numbers_for_asyncpg() -> None:
    """Numbers count occurrences, and each says the name whose value it takes."""
    assert numbered("VALUES (:event_id, :b2, :event_id)") == ("VALUES ($1, $2, $3)", ("event_id", "b2", "event_id"))


def test_a_statement_without_parameters_stays() -> None:
    """Savepoints and questions go out as they are."""
    assert pyformat("SAVEPOINT one") == "SAVEPOINT one"
    assert numbered("SAVEPOINT one") == ("SAVEPOINT one", ())
