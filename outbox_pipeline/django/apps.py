"""The app as INSTALLED_APPS knows it."""

from django.apps import AppConfig


class OutboxConfig(AppConfig):
    """The outbox; its label leaves `outbox` to an app of the project's own."""

    name = "outbox_pipeline.django"
    label = "outbox_pipeline"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let connections keep the order in which transactions are opened, and follow `migrate` and `flush`."""
        from outbox_pipeline.django.blocks import keep_order
        from outbox_pipeline.django.signals import follow_commands

        keep_order()
        follow_commands(self)
