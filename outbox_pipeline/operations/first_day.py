"""The ledger's first day, with which Dagster's partitions begin.

The process that starts a code server asks for it, so that the definitions load without a database. Run as a module it
prints the day, for a parent that opens no connection itself.
"""

import sys
from datetime import date

from outbox_pipeline.errors import OutboxError, first_line
from outbox_pipeline.postgres.conditions import read_begun_on
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.settings import Settings, load_settings

#: The variable that tells it to the definitions.
VARIABLE = "OUTBOX_FIRST_DAY"


def find_first_day(settings: Settings) -> date:
    """Return the ledger's first day (UTC), which never moves to a later one.

    Raises ConfigurationError without a schema of this code's, TransientError when PostgreSQL does not answer.
    """
    with ledger_transaction(create_outbox_engine(settings, pooled=False)) as connection:
        check_version(connection)
        return read_begun_on(connection)


if __name__ == "__main__":
    try:
        print(find_first_day(load_settings()))
    except OutboxError as error:
        sys.exit(first_line(error))
