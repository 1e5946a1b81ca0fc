"""The page of one run, as the server sends it."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from dispatch.items import freeze
from dispatch.states import RunState, ShardState
from nodes import registry
from nodes.fields import parse_quota
from tests.integration import records

pytestmark = pytest.mark.django_db

ODD = "<b>bold</b> \u202eright \U0001f600 " + "x" * 180


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_user("op", is_staff=True))
    return client


def test_it_says_how_far_the_run_is_and_what_was_wished(operator: Client) -> None:
    run = records.run(4, name="night", params={"seconds": 2}, labels={"zone": "eu"}, saved=1)
    page = operator.get(f"/runs/{run.pk}").content.decode()
    assert "night" in page
    assert "1/4" in page
    assert "zone=eu" in page
    assert "&quot;seconds&quot;: 2" in page
    assert "Nothing has failed" in page


def test_equal_errors_are_one_group_however_many(operator: Client) -> None:
    run = records.run(1_000)
    for at in range(0, 990, 10):
        records.cut(run, at, at + 10, ShardState.FAILED, error="the disk is full")
    records.cut(run, 990, 1000, ShardState.QUARANTINED, error="poison")
    page = operator.get(f"/runs/{run.pk}").content.decode()
    assert page.count('id="error-') == 2
    assert page.count(">the disk is full<") == 1
    assert ">990<" in page
    assert ">99<" in page


def test_nor_does_it_matter_which_item_an_error_begins_with(operator: Client) -> None:
    run = records.run(items=freeze(["AAPL", "FB", "IBM"]), count=3)
    for at, name in enumerate(["AAPL", "FB", "IBM"]):
        records.cut(run, at, at + 1, ShardState.FAILED, error=f"{name}: FBI: no page {name}.html at the source")
    page = operator.get(f"/runs/{run.pk}").content.decode()
    assert page.count('id="error-') == 1
    assert ">FBI: no page ….html at the source<" in page


def test_names_cannot_be_markup(operator: Client) -> None:
    run = records.run(1, name=ODD)
    records.cut(run, 0, 1, ShardState.FAILED, error=ODD)
    page = operator.get(f"/runs/{run.pk}").content.decode()
    assert "<b>bold</b>" not in page
    assert page.count("&lt;b&gt;bold&lt;/b&gt;") >= 2


def test_a_run_that_is_not_there_is_a_404(operator: Client) -> None:
    assert operator.get("/runs/77").status_code == 404


def test_who_is_not_signed_in_is_sent_to_sign_in(client: Client) -> None:
    run = records.run(1)
    assert client.get(f"/runs/{run.pk}").status_code == 302


def test_its_queries_do_not_grow_with_the_run(operator: Client, django_assert_max_num_queries) -> None:
    run = records.run(1_000)
    for at in range(300):
        records.cut(run, at, at + 1, ShardState.FAILED, error=f"error {at}")
    with django_assert_max_num_queries(26):
        operator.get(f"/runs/{run.pk}")


def test_cancel_and_retry_are_buttons_that_lead_back_and_say_what_speaks_against_it(operator: Client) -> None:
    run = records.run(4)
    assert operator.get(f"/runs/{run.pk}/cancel").status_code == 405
    assert operator.post(f"/runs/{run.pk}/cancel")["Location"] == f"/runs/{run.pk}"
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    again = operator.post(f"/runs/{run.pk}/cancel", follow=True).content.decode()
    assert f"run {run.pk} has ended already: cancelled" in again
    assert operator.post("/runs/77/retry").status_code == 404


def test_errors_that_are_ticked_are_tried_again_and_no_others(operator: Client) -> None:
    run = records.run(items=freeze(["AAPL", "FB", "IBM"]), count=3, state=RunState.FAILED, failed=3)
    messages = ("AAPL: the source is away", "FB: no such symbol", "IBM: the source is away")
    made = [records.cut(run, at, at + 1, ShardState.FAILED, error=error) for at, error in enumerate(messages)]
    page = operator.get(f"/runs/{run.pk}").content.decode()
    assert f'name="group" value="{made[0].pk}"' in page
    assert operator.post(f"/runs/{run.pk}/retry", {"group": [made[0].pk]})["Location"] == f"/runs/{run.pk}"
    run.refresh_from_db()
    assert (run.state, run.failed) == (RunState.RUNNING, 1)
    assert list(run.shards.filter(state=ShardState.FAILED).values_list("start", flat=True)) == [1]


@pytest.mark.parametrize(
    ("ticked", "said"),
    [({"group": "x"}, "group: &#x27;x&#x27; is not a number"), ({"ticked": ""}, "item: none is ticked"),
     ({"item": "1"}, "nothing in it can be retried, of the items that were asked for")],
)  # fmt: skip
def test_a_choice_of_nothing_tries_nothing_again(operator: Client, ticked: dict[str, str], said: str) -> None:
    run = records.run(2, state=RunState.PARTIAL, failed=1, saved=1)
    records.cut(run, 0, 1, ShardState.FAILED, error="no")
    page = operator.post(f"/runs/{run.pk}/retry", ticked, follow=True).content.decode()
    assert said in page
    run.refresh_from_db()
    assert run.state == RunState.PARTIAL


def test_its_buttons_need_the_forms_token() -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.create_user("op", is_staff=True))
    run = records.run(4)
    assert strict.post(f"/runs/{run.pk}/cancel").status_code == 403
    run.refresh_from_db()
    assert run.state == RunState.RUNNING


def test_it_says_why_the_rest_waits_with_the_exact_limit_and_its_place(operator: Client) -> None:
    node, _ = registry.add_node("east", capacity=4, quotas=[parse_quota("echo=2/2")])
    registry.record_beat(node.pk, at=timezone.now(), executors=["echo"])
    records.hold(node, 2)
    records.run(9, type="echo", name="the first", priority=9)
    run = records.run(9, type="echo")
    page = operator.get(f"/runs/{run.pk}").content.decode()
    assert "quota limit 2 of 2 for echo: 1 node" in page
    assert "2 of 2 in line" in page
    assert "the first" in page
    assert "priority 9, above 5" in page


def test_an_ended_run_waits_for_nothing(operator: Client) -> None:
    page = operator.get(f"/runs/{records.run(9, state=RunState.CANCELLED).pk}").content.decode()
    assert 'aria-labelledby="waits-title" hidden' in page
