"""Commands on events that validation refused: `quarantine list`, `show`, `requeue`, `discard` and `replace`."""

from outbox_pipeline.cli.quarantine.look import add_to

__all__ = ["add_to"]
