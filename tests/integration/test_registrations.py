"""Registration keys at a terminal and in the admin: shown once, listed, revoked."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from nodes import registrations
from nodes.models import RegistrationKey
from tests.integration.devices import Caller

pytestmark = pytest.mark.django_db
KEY = re.compile(r"(?<![\w-])CR[A-Za-z0-9_-]{40}(?![\w-])")


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("registration_key", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def browser() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def test_a_key_is_issued_at_a_terminal_and_works():
    said = command("crawlers", "--many")
    (key,) = KEY.findall(said)
    Caller(key).register()
    assert KEY.findall(command()) == []
    assert "w1" in command()
    (listed,) = json.loads(command("--json"))
    assert (listed["name"], listed["many"], listed["devices"]) == ("crawlers", True, ["w1"])


def test_for_programs_it_is_json():
    made = json.loads(command("crawlers", "--json"))
    assert registrations.find(made["key"]) == RegistrationKey.objects.get(pk=made["id"])
    assert made["many"] is False


def test_a_key_is_revoked_at_a_terminal():
    (key,) = KEY.findall(command("crawlers"))
    assert "1 key " in command("crawlers", "--revoke")
    assert registrations.find(key) is None
    with pytest.raises(CommandError, match="no live registration key") as refused:
        command("crawlers", "--revoke")
    assert refused.value.returncode == 3
    command("others")
    (revoked,) = json.loads(command("others", "--revoke", "--json"))
    assert revoked["revoked_at"] is not None


def test_a_key_is_rotated_and_its_devices_stay(browser):
    (old,) = KEY.findall(command("crawlers"))
    Caller(old).register("w1")
    command("crawlers", "--revoke")
    (new,) = KEY.findall(command("crawlers", "--rotate"))
    Caller(old).get("devices", 401)
    Caller(new).register("w1")
    chosen = {"action": "rotate", "_selected_action": [RegistrationKey.objects.get().pk], "confirmed": "1"}
    page = browser.post(reverse("admin:nodes_registrationkey_changelist"), chosen, follow=True).content.decode()
    (newest,) = set(KEY.findall(page))
    Caller(new).get("devices", 401)
    Caller(newest).register("w1")
    with pytest.raises(CommandError, match="no registration key"):
        command("nobody", "--rotate")


def test_a_name_that_cannot_be_is_refused():
    with pytest.raises(CommandError, match="name"):
        command("x" * 101)
    assert not RegistrationKey.objects.exists()


def test_the_admin_issues_a_key_and_shows_it_once(browser):
    page = browser.post(
        reverse("admin:nodes_registrationkey_add"), {"name": "crawlers", "many": "on"}, follow=True
    ).content.decode()
    (key,) = set(KEY.findall(page))
    made = RegistrationKey.objects.get()
    assert registrations.find(key) == made
    assert made.many
    for where in ("changelist", "change"):
        arguments = [made.pk] if where == "change" else []
        page = browser.get(reverse(f"admin:nodes_registrationkey_{where}", args=arguments)).content.decode()
        assert "crawlers" in page
        assert KEY.findall(page) == []


def test_the_admin_revokes_keys_and_changes_nothing_else(browser):
    issued = registrations.issue("crawlers")
    pk = issued.registration.pk
    chosen = {"action": "revoke", "_selected_action": [pk]}
    browser.post(reverse("admin:nodes_registrationkey_changelist"), chosen, follow=True)
    assert registrations.find(issued.key) is not None
    browser.post(reverse("admin:nodes_registrationkey_changelist"), {**chosen, "confirmed": "1"}, follow=True)
    assert registrations.find(issued.key) is None
    changed = browser.post(reverse("admin:nodes_registrationkey_change", args=[pk]), {"name": "other"})
    assert changed.status_code == 403
    assert browser.post(reverse("admin:nodes_registrationkey_delete", args=[pk])).status_code == 403
