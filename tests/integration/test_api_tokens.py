"""Signing in to the native API."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.test import Client

from api import guesses
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

WORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _no_guesses_yet() -> None:
    guesses.passwords_for.forget()
    guesses.passwords_from.forget()


@pytest.fixture
def api(client: Client) -> Api:
    return Api(client)


@pytest.fixture
def operator() -> User:
    user: User = get_user_model().objects.create_user("operator", password=WORD, is_staff=True)
    return user


def sign_in(api: Api, password: str = WORD, name: str = "operator", **headers: str) -> Any:
    return api.post("token", {"username": name, "password": password}, **headers)


def test_a_token_opens_the_api_and_refreshes(api: Api, operator: User) -> None:
    pair = sign_in(api)
    assert pair.status == 200
    assert api.get("runs").status == 401
    assert api.get("runs", HTTP_AUTHORIZATION=f"Bearer {pair.body['access']}").status == 200
    fresh = api.post("token/refresh", {"refresh": pair.body["refresh"]})
    assert fresh.status == 200
    assert api.get("runs", HTTP_AUTHORIZATION=f"Bearer {fresh.body['access']}").status == 200


def test_signing_in_works_with_a_form_too(client: Client, operator: User) -> None:
    body = f"username=operator&password={WORD}"
    response = client.post("/api/v1/token", body, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 200
    guess = body.replace(WORD, "nonsense")
    kind = "application/x-www-form-urlencoded"
    statuses = [
        client.post("/api/v1/token", guess, content_type=kind, REMOTE_ADDR="192.0.2.1").status_code for _ in range(11)
    ]
    assert statuses == [401] * 10 + [429]


def test_a_token_needs_no_csrf_token(operator: User) -> None:
    api = Api(Client(enforce_csrf_checks=True))
    access = sign_in(api).body["access"]
    answer = api.post("runs", {"type": "echo", "items": ["a"]}, HTTP_AUTHORIZATION=f"Bearer {access}")
    assert answer.status == 201
    assert answer.body["submitted_by"] == "operator"


def test_a_token_of_somebody_who_is_not_staff_opens_nothing(api: Api) -> None:
    get_user_model().objects.create_user("guest", password=WORD)
    access = sign_in(api, name="guest").body["access"]
    assert api.get("runs", HTTP_AUTHORIZATION=f"Bearer {access}").status == 403


def test_a_wrong_password_and_an_unknown_name_are_told_alike(api: Api, operator: User) -> None:
    wrong, unknown = sign_in(api, "nonsense"), sign_in(api, name="nobody")
    assert (wrong.status, unknown.status) == (401, 401)
    assert wrong.body == unknown.body


@pytest.mark.parametrize(
    "header", ["Bearer nonsense", "Bearer", "Bearer a b", "Bearer a.b.c", "Bearer \xff", "Basic b3A6b3A="]
)
def test_a_bad_authorization_is_a_401(api: Api, header: str) -> None:
    answer = api.get("runs", HTTP_AUTHORIZATION=header)
    assert answer.status == 401
    assert answer.body["detail"]
    assert answer.response["WWW-Authenticate"]


def test_guessing_a_password_is_throttled_and_other_names_are_not(api: Api, operator: User) -> None:
    answers = [sign_in(api, f"guess {number}") for number in range(11)]
    assert [answer.status for answer in answers] == [401] * 10 + [429]
    assert int(answers[-1].response["Retry-After"]) > 0
    # Not even the right one passes now, or the throttle would tell when it is found.
    assert sign_in(api, HTTP_X_FORWARDED_FOR="203.0.113.9").status == 429
    get_user_model().objects.create_user("other", password=WORD)
    assert sign_in(api, name="other").status == 200


def test_guessing_many_names_from_one_address_is_throttled(api: Api) -> None:
    statuses = [sign_in(api, name=f"name {number}").status for number in range(31)]
    assert statuses == [401] * 30 + [429]


def test_an_invented_forwarded_address_is_no_way_around_the_throttle(api: Api) -> None:
    statuses = [
        sign_in(api, name=f"name {number}", HTTP_X_FORWARDED_FOR=f"203.0.113.{number}").status for number in range(31)
    ]
    assert statuses[-1] == 429


def test_signing_in_rightly_is_never_throttled(api: Api, operator: User) -> None:
    assert {sign_in(api).status for _ in range(40)} == {200}


def test_whoever_signed_in_before_is_not_kept_out_by_somebody_elses_guesses(api: Api, operator: User) -> None:
    assert sign_in(api, REMOTE_ADDR="192.0.2.7").status == 200
    answers = [sign_in(api, "guess", REMOTE_ADDR=f"203.0.113.{number}").status for number in range(11)]
    assert answers == [401] * 10 + [429]
    assert sign_in(api, REMOTE_ADDR="192.0.2.8").status == 429
    assert sign_in(api, REMOTE_ADDR="192.0.2.7").status == 200


def test_guesses_from_a_whole_ipv6_network_are_one_guessers(api: Api) -> None:
    statuses = [
        sign_in(api, name=f"name {number}", REMOTE_ADDR=f"2001:db8:0:1::{number:x}").status for number in range(31)
    ]
    assert statuses == [401] * 30 + [429]
    assert sign_in(api, name="name", REMOTE_ADDR="2001:db8:0:2::1").status == 401


def test_a_token_is_worth_nothing_when_its_user_is_gone_or_inactive(api: Api, operator: User) -> None:
    pair = sign_in(api).body
    operator.is_active = False
    operator.save()
    assert api.get("runs", HTTP_AUTHORIZATION=f"Bearer {pair['access']}").status == 401
    assert api.post("token/refresh", {"refresh": pair["refresh"]}).status == 401
    operator.delete()
    assert api.get("runs", HTTP_AUTHORIZATION=f"Bearer {pair['access']}").status == 401
    assert api.post("token/refresh", {"refresh": pair["refresh"]}).status == 401


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("token", {}, "username"),
        ("token", {"username": "x"}, "password"),
        ("token", {"username": ["x"], "password": "y"}, "username"),
        ("token", "{", "body"),
        ("token", "[]", "body"),
        ("token", '{"username": "\\u0000", "password": "y"}', "username"),
        ("token/refresh", {}, "refresh"),
        ("token/refresh", "3", "body"),
    ],
)
def test_a_body_that_signs_nobody_in_is_refused_naming_the_field(api: Api, path: str, body: Any, field: str) -> None:
    answer = api.post(path, body)
    assert (answer.status, answer.body["field"]) == (400, field)


def test_a_refresh_token_is_no_access_token(api: Api, operator: User) -> None:
    pair = sign_in(api).body
    assert api.get("runs", HTTP_AUTHORIZATION=f"Bearer {pair['refresh']}").status == 401
    assert api.post("token/refresh", {"refresh": pair["access"]}).status == 401
