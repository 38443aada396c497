"""A user is created through HTTP, and the event arrives in ClickHouse exactly when the user exists."""

from typing import Any

from conftest import Arrived
from events import UserCreated
from fastapi.testclient import TestClient


def test_a_users_event_arrives(client: TestClient, arrived: Arrived) -> None:
    """201, and ClickHouse has the event with the user's id."""
    response = client.post("/users", json={"email": "ada@example.org"})

    assert response.status_code == 201
    assert {"user_id": response.json()["id"], "email": "ada@example.org"} in arrived()


def test_what_was_rolled_back_never_arrives(client: TestClient, arrived: Arrived) -> None:
    """The voucher is unknown after the event was published: the address stays free, and only the second try arrives."""
    refused = client.post("/users", json={"email": "bob@example.org", "voucher": "UNKNOWN"})
    accepted = client.post("/users", json={"email": "bob@example.org"})

    assert (refused.status_code, accepted.status_code) == (422, 201)
    assert [event["user_id"] for event in arrived() if event["email"] == "bob@example.org"] == [accepted.json()["id"]]


def test_one_event_is_published(client: TestClient, outbox: Any) -> None:
    """What a unit test asks, with the fixture of the pytest plugin: no delivery, no ClickHouse."""
    user_id = client.post("/users", json={"email": "eve@example.org"}).json()["id"]

    assert outbox.published(UserCreated) == [UserCreated(user_id=user_id, email="eve@example.org")]
