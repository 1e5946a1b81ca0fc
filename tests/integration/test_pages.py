"""Sign-in links, error pages, health, and that pages can do with the policy of test_security_headers.py."""

from __future__ import annotations

import datetime as dt
import re
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.auth.tokens import default_token_generator
from django.db import connections
from django.test import Client
from django.utils import timezone

from api import pages
from api.overview import Overview
from tests.integration.records import allocation, node, run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("overview")]

# ---- the policy that stands behind the escaping ----


@pytest.mark.parametrize(
    "path", ["/", "/journal", "/admin/", "/admin/nodes/node/", "/admin/dispatch/run/", "/no/such/page"]
)
def test_pages_have_nothing_that_the_policy_forbids(admin_client: Client, path: str) -> None:
    allocation(run(saved=3), node(), 3, 10)
    html = admin_client.get(path).content.decode()
    assert not re.search(r"\son\w+\s*=", html)
    if not path.startswith("/admin/"):  # whose theme may style: see the policy there
        assert not re.search(r"\sstyle\s*=", html)
        assert "<style" not in html
    assert re.findall(r"<script(?![^>]*\ssrc=)", html) == []
    assert re.findall(r'(?:src|href)="(?:https?:)?//', html) == []


def test_the_files_a_page_names_are_served(browser: Client) -> None:
    html = browser.get("/").content.decode()
    names = set(re.findall(r'(?:src|href|data-failed)="(/static/[^"]+)"', html))
    assert len(names) == 5
    for name in names:
        assert browser.get(name).status_code == 200, name


# ---- sign-in links ----


def test_a_sign_in_link_signs_in_and_leads_to_the_overview(client: Client, staff: User) -> None:
    response = client.get(pages.sign_in_link(staff))
    assert response["Location"] == "/"
    assert response["Referrer-Policy"] == "no-referrer"
    assert "no-store" in response["Cache-Control"]
    assert client.get("/").status_code == 200
    assert client.session["_auth_user_id"] == str(staff.pk)


def test_a_sign_in_link_works_once(client: Client, staff: User) -> None:
    link = pages.sign_in_link(staff)
    client.get(link)
    stranger = Client()
    response = stranger.get(link)
    assert response.status_code == 403
    assert "works once, and for 10 minutes" in response.content.decode()
    assert "python manage.py signin USERNAME --url http://testserver" in response.content.decode()
    assert response["Referrer-Policy"] == "no-referrer"
    assert "_auth_user_id" not in stranger.session


def test_a_second_link_made_within_the_same_second_works_once_too(client: Client, staff: User) -> None:
    client.get(pages.sign_in_link(staff))
    staff.refresh_from_db()
    link = pages.sign_in_link(staff)
    assert Client().get(link).status_code == 302
    assert Client().get(link).status_code == 403


def test_signing_in_with_the_password_ends_a_link(client: Client, staff: User) -> None:
    link = pages.sign_in_link(staff)
    assert client.login(username="anna", password="a long pass phrase")
    assert Client().get(link).status_code == 403


@pytest.mark.parametrize(("seconds", "status"), [(599, 302), (602, 403)])
def test_a_sign_in_link_lives_ten_minutes(
    client: Client, staff: User, monkeypatch: pytest.MonkeyPatch, seconds: int, status: int
) -> None:
    link = pages.sign_in_link(staff)
    then = timezone.now() + dt.timedelta(seconds=seconds)
    monkeypatch.setattr(timezone, "now", lambda: then)
    assert client.get(link).status_code == status


def test_links_of_the_inactive_the_unknown_and_the_guessed_are_refused(client: Client, staff: User) -> None:
    link = pages.sign_in_link(staff)
    _, _, uid, token, _ = link.split("/")
    User.objects.create_user("bert")
    other = pages.sign_in_link(User.objects.get(username="bert")).split("/")[2]
    guesses = [
        f"/sign-in/{uid}/{token[:-1]}{'0' if token[-1] != '0' else '1'}/",
        f"/sign-in/{other}/{token}/",
        f"/sign-in/OTk5OTk5/{token}/",
        f"/sign-in/!!/{token}/",
        f"/sign-in/{'9' * 400}/{token}/",
        f"/sign-in/{uid}/-/",
        # A password reset's token opens its own door only.
        f"/sign-in/{uid}/{default_token_generator.make_token(staff)}/",
    ]
    for guess in guesses:
        assert client.get(guess).status_code == 403, guess
    User.objects.filter(pk=staff.pk).update(is_active=False)
    assert client.get(link).status_code == 403


def test_a_sign_in_link_is_not_used_up_by_anything_but_a_get(client: Client, staff: User) -> None:
    link = pages.sign_in_link(staff)
    assert client.head(link).status_code == 405
    assert client.post(link).status_code == 405
    assert client.get(link).status_code == 302


@pytest.mark.django_db(transaction=True)
def test_of_two_clicks_at_the_same_moment_one_signs_in(staff: User, monkeypatch: pytest.MonkeyPatch) -> None:
    link = pages.sign_in_link(staff)
    both, answers = threading.Barrier(2, timeout=20), []
    check = pages.SignInTokens.check_token

    def check_then_meet(self: pages.SignInTokens, user: Any, token: str | None) -> bool:
        fine = check(self, user, token)
        both.wait()
        return fine

    monkeypatch.setattr(pages.SignInTokens, "check_token", check_then_meet)

    def click() -> None:
        try:
            answers.append(Client().get(link).status_code)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=click) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [302, 403]


# ---- the rest ----


def test_health_needs_no_sign_in_and_no_database(client: Client, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        response = client.get("/healthz")
    assert response.json() == {"status": "ok"}


def test_an_unknown_address_gets_a_page_with_a_way_out(client: Client) -> None:
    response = client.get("/no/<b>such</b>")
    assert response.status_code == 404
    html = response.content.decode()
    assert "There is no page here" in html
    assert 'href="/"' in html
    assert "<b>such" not in html


def test_a_failing_page_gives_nothing_away(
    browser: Client, overview: Overview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(overview, "look", fail)
    browser.raise_request_exception = False
    response = browser.get("/")
    assert response.status_code == 500
    assert "Something went wrong here" in response.content.decode()
    assert "the secret" not in response.content.decode()


def test_a_form_without_its_token_is_explained(staff: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(staff)
    response = client.post("/admin/logout/")
    assert response.status_code == 403
    assert "This form could not be checked" in response.content.decode()


def test_the_page_offers_to_sign_out(browser: Client) -> None:
    html = browser.get("/").content.decode()
    assert '<form method="post" action="/admin/logout/"' in html
    assert "csrfmiddlewaretoken" in html
