"""What a MergeTree table is set to, whether its statement says so or the server's configuration."""

import re

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.errors import ConfigurationError

_DEFAULT = "SELECT value FROM system.merge_tree_settings WHERE name = {name:String}"


def setting_of(client: EventLogClient, create_statement: str, name: str, *, usual: str) -> str:
    """Return a setting of the table made by *create_statement*.

    *usual*: ClickHouse's own default, which counts where the user may not read the server's.
    """
    # At the end, where the table's settings stand; a comment may say anything.
    written = re.findall(rf"\b{name} = '?([^',\s]*)", create_statement)
    if written:
        return str(written[-1])
    try:
        rows = client.rows(_DEFAULT, {"name": name})
    except ConfigurationError:
        return usual
    return str(rows[0]["value"]) if rows else usual
