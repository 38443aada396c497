"""What this application publishes. The pipeline validates contexts with these models: OUTBOX_EVENT_MODULES=events."""

from outbox_pipeline import Event


class UserCreated(Event):
    """Somebody has signed up."""

    user_id: int
    email: str
