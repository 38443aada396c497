"""A user is created through HTTP, and the event arrives in ClickHouse exactly when the user exists."""

import json
from typing import Any

import pytest
from conftest import Arrived
from django.test import Client
from shop.events import UserCreated


def sign_up(shop: Client, **fields: str) -> Any:
    """Post the sign-up form."""
    return shop.post("/users/", json.dumps(fields), content_type="application/json")


def test_a_users_event_arrives(shop: Client, arrived: Arrived) -> None:
    """201, and ClickHouse has the event with the user's id."""
    response = sign_up(shop, email="ada@example.org")

    assert response.status_code == 201
    assert {"user_id": response.json()["id"], "email": "ada@example.org"} in arrived()


def test_what_was_rolled_back_never_arrives(shop: Client, arrived: Arrived) -> None:
    """The voucher is unknown after the event was published: neither user nor event remain."""
    from django.contrib.auth.models import User

    response = sign_up(shop, email="bob@example.org", voucher="UNKNOWN")

    assert response.status_code == 422
    assert not User.objects.filter(email="bob@example.org").exists()
    assert "bob@example.org" not in [event["email"] for event in arrived()]


def test_one_event_is_published(shop: Client, outbox: Any) -> None:
    """What a unit test asks, with the fixture of the pytest plugin: no delivery, no ClickHouse."""
    user_id = sign_up(shop, email="eve@example.org").json()["id"]

    assert outbox.published() != []
    assert outbox.published(UserCreated) == [UserCreated(user_id=user_id, email="eve@example.org")]


@pytest.mark.parametrize("page", ["outboxevent", "quarantinedevent"])
def test_the_admin_shows_the_outbox(shop: Client, page: str) -> None:
    """A superuser sees events and quarantine."""
    from django.contrib.auth.models import User

    shop.force_login(User.objects.get_or_create(username="root", is_staff=True, is_superuser=True)[0])

    assert shop.get(f"/admin/outbox_pipeline/{page}/").status_code == 200
