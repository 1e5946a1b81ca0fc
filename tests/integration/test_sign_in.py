"""The sign-in page: guessed passwords are throttled, together with the token endpoint's."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from api import guesses

pytestmark = pytest.mark.django_db

WORD = "a long pass phrase"


@pytest.fixture(autouse=True)
def _no_guesses_yet() -> None:
    guesses.passwords_for.forget()
    guesses.passwords_from.forget()


def sign_in(client: Client, password: str, name: str = "anna", **more: Any):
    return client.post(reverse("admin:login"), {"username": name, "password": password, "next": "/"}, **more)


def test_a_right_password_signs_in_however_often(client: Client, staff: User) -> None:
    for _ in range(12):
        response = sign_in(client, WORD)
        assert (response.status_code, response["Location"]) == (302, "/")
    assert client.get("/").status_code == 200


def test_guessing_at_one_name_is_throttled_wherever_it_comes_from(client: Client, staff: User) -> None:
    statuses = [sign_in(client, f"guess {n}", REMOTE_ADDR=f"192.0.2.{n}").status_code for n in range(11)]
    assert statuses == [200] * 10 + [429]
    refused = sign_in(client, WORD)
    assert refused.status_code == 429
    assert 0 < int(refused["Retry-After"]) <= 60
    assert "Too many" in refused.content.decode()
    assert client.get("/").status_code == 302


def test_guessing_at_many_names_from_one_address_is_throttled(client: Client) -> None:
    assert [sign_in(client, "x", f"name {n}").status_code for n in range(31)] == [200] * 30 + [429]


def test_the_token_endpoint_and_the_page_share_their_count(client: Client, staff: User) -> None:
    for number in range(5):
        sign_in(client, f"guess {number}")
        client.post("/api/v1/token", {"username": "anna", "password": f"other {number}"}, "application/json")
    assert sign_in(client, "one more").status_code == 429
    body = {"username": "Anna ", "password": WORD}
    assert client.post("/api/v1/token", body, "application/json").status_code == 429


def test_the_page_itself_is_never_refused(client: Client) -> None:
    for number in range(31):
        sign_in(client, "x", f"name {number}")
    assert client.get(reverse("admin:login")).status_code == 200
