"""Schedules, webhooks and their calls in Django's admin."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from dispatch import lifecycle, schedule
from dispatch.models import Delivery, Switch, Task

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def form(**changed: Any) -> dict[str, Any]:
    """As the page sends it, empty boxes and all."""
    filled = {"name": "nightly", "type": "echo", "active": "on", "items": '["a"]', "params": "{}", "priority": 5}
    filled |= {"timeout": 300, "max_attempts": 3, "backoff": 1, "shard_size": 0, "balancer": "most_free"}
    filled |= {"labels": "{}", "affinity": "{}", "rate_key": "", "fallback": "allowed", "source_kind": ""}
    filled |= {"cron": "30 6 * * *", "time_zone": "Europe/Berlin", "misfire": "skip", "webhook_url": ""}
    filled |= {"webhook_template": "", "webhook_headers": "", "webhook_secret": ""}
    return filled | changed


def page(browser: Client, *names: Any, post: dict[str, Any] | None = None) -> str:
    address = reverse(f"admin:dispatch_{names[0]}", args=names[1:])
    answer = browser.get(address) if post is None else browser.post(address, post, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_schedule_is_checked_kept_and_shown_with_its_next_fire_times(browser: Client) -> None:
    page(browser, "task_add", post=form())
    task = Task.objects.get()
    assert (task.cron, task.misfire, task.webhook_headers) == ("30 6 * * *", "skip", {})
    assert task.next_fire_at is not None
    assert page(browser, "task_change", task.pk).count(" 06:30:00+0") == 5
    page(browser, "task_change", task.pk, post=form(active=""))
    task.refresh_from_db()
    assert task.next_fire_at is None or not task.active


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cron": "61 * * * *"}, "is no minute"),
        ({"time_zone": "Nowhere"}, "is not a time zone"),
        ({"misfire": "often"}, "not one of the available choices"),
        ({"webhook_url": "ftp://a/"}, "http and https are allowed"),
        ({"webhook_headers": '{"Host": "a"}'}, "is set by this server"),
        ({"webhook_template": "{% load x %}"}, "load"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(browser: Client, changed: dict[str, Any], said: str) -> None:
    assert said in page(browser, "task_add", post=form(**changed))
    assert not Task.objects.exists()


def test_a_secret_is_never_shown_and_stays_when_left_empty(browser: Client) -> None:
    page(browser, "task_add", post=form(webhook_url="http://127.0.0.1:9/", webhook_secret="s3cret"))
    task = Task.objects.get()
    assert "s3cret" not in page(browser, "task_change", task.pk)
    page(browser, "task_change", task.pk, post=form(webhook_url="http://127.0.0.1:9/", priority=9))
    task.refresh_from_db()
    assert (task.webhook_secret, task.priority) == ("s3cret", 9)


def test_calls_are_shown_and_made_again(browser: Client) -> None:
    task = Task.objects.create(name="t", type="echo", items=["a"], webhook_url="http://127.0.0.1:9/")
    lifecycle.cancel(lifecycle.submit_task(task).pk)
    Delivery.objects.update(state="failed", error="answered 500")
    delivery = Delivery.objects.get()
    assert "answered 500" in page(browser, "delivery_changelist")
    page(browser, "delivery_change", delivery.pk)
    page(
        browser, "delivery_changelist", post={"action": "call_again", "confirmed": 1, "_selected_action": [delivery.pk]}
    )
    assert Delivery.objects.get().state == "waiting"


def test_the_scheduler_is_turned_off_and_on(browser: Client) -> None:
    schedule.stop("anna")
    switch = Switch.objects.get()
    assert "stopped by anna" in page(browser, "switch_changelist")
    page(browser, "switch_changelist", post={"action": "turn_on", "confirmed": 1, "_selected_action": [switch.pk]})
    assert schedule.state()["running"]
    page(browser, "switch_changelist", post={"action": "turn_off", "confirmed": 1, "_selected_action": [switch.pk]})
    assert schedule.state()["note"] == "stopped by operator"
