"""The parameters of a statement in each driver's style."""

from outbox_pipeline.publish.parameters import numbered, pyformat


def test_names_become_what_psycopg_and_django_take() -> None:
    """Every name, also a repeated one, is taken by its name."""
    assert pyformat("VALUES (:a, CAST(:b AS text), :a)") == "VALUES (%(a)s, CAST(%(b)s AS text), %(a)s)"


def test_names_become_numbers_for_asyncpg() -> None:
    """Numbers count occurrences, and each says the name whose value it takes."""
    assert numbered("VALUES (:a, :b, :a)") == ("VALUES ($1, $2, $3)", ("a", "b", "a"))


def test_a_statement_without_parameters_stays() -> None:
    """Savepoints and questions go out as they are."""
    assert pyformat("SAVEPOINT one") == "SAVEPOINT one"
    assert numbered("SAVEPOINT one") == ("SAVEPOINT one", ())
