"""Decides which events of a batch may go to ClickHouse: a pandas frame over Arrow memory, judged by pandera.

`contract` says which columns a batch has, `rules` what is wrong with an event, `models` what is wrong with a context
that the application has a model for; `verdict` joins them and is the entrance. Nothing here knows PostgreSQL,
ClickHouse or Dagster, and nothing changes an event: a batch goes in, the positions to be quarantined come out.
"""

from outbox_pipeline.validation.rules import Reason, Rules
from outbox_pipeline.validation.verdict import Rejection, validate_events

__all__ = ["Reason", "Rejection", "Rules", "validate_events"]
