"""What-if as a page: a form with what is there, and both answers beside each other, of which nothing is done."""

from __future__ import annotations

import html as htmls
import re
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dispatch import queue
from dispatch.models import Allocation
from nodes import registry
from nodes.fields import parse_quota
from nodes.models import Node, Quota
from tests.integration import records

pytestmark = pytest.mark.django_db


@pytest.fixture
def east() -> Node:
    """Four slots, of which two at most are for echo, and these are in use."""
    node, _ = registry.add_node("east", capacity=4, quotas=[parse_quota("echo=2/2")])
    registry.record_beat(node.pk, at=timezone.now(), executors=["echo", "crawl"])
    records.hold(Node.objects.get(pk=node.pk), 2)
    return Node.objects.get(pk=node.pk)


def page(browser: Client, status: int = 200, /, **query: Any) -> str:
    answer = browser.get("/what-if", query)
    assert answer.status_code == status
    return htmls.unescape(answer.content.decode())


def test_the_form_has_what_is_there(browser: Client, east: Node) -> None:
    run = records.run(9, type="echo", name="nightly", priority=4)
    html = page(browser)
    assert f'name="n{east.pk}.capacity" value="4"' in html
    assert "echo=2/2</textarea>" in html
    assert f'name="r{run.pk}.priority" value="4"' in html
    assert "Nothing is changed" in html
    assert "The next pass" not in html


def test_both_answers_stand_beside_each_other_and_then_come_true(browser: Client, east: Node) -> None:
    run = records.run(9, type="echo", name="nightly", shard_size=3)
    html = page(browser, **{f"n{east.pk}.capacity": 5, f"n{east.pk}.quotas": "echo=2/4"})
    assert "node east: capacity 4 → 5" in re.sub(r"<[^>]+>", "", html)
    assert "quota echo 2 (limit 2) → 2 (limit 4)" in re.sub(r"<[^>]+>", "", html)
    assert "As it is: <b>0</b> shards, 0 items. As supposed: <b>2</b> shards, 6 items." in html
    assert "Would still wait then: 3 items, 1 run." in html
    assert re.search(r"gets <b>2</b> shards, 6 items <small>online, 2 of 5 slots in use before", html)
    assert "quota limit 4 of 4 for echo: 1 node" in html
    foreseen = re.findall(r"\[(\d+), (\d+)\)", html)
    assert Allocation.objects.filter(run=run).count() == 0
    assert Quota.objects.get().limit == 2
    registry.update_node(east.pk, capacity=5, quotas=[parse_quota("echo=2/4")])
    queue.allocate_now()
    given = Allocation.objects.filter(run=run).order_by("pk").values_list("start", "stop")
    assert foreseen == [(str(start), str(stop)) for start, stop in given]


def test_a_node_more_a_priority_and_draining(browser: Client, east: Node) -> None:
    run = records.run(9, type="echo", priority=4)
    html = page(
        browser,
        **{
            f"n{east.pk}.draining": "yes",
            f"r{run.pk}.priority": 9,
            "add.name": "north",
            "add.capacity": 2,
            "add.labels": "region=eu",
            "add.types": "echo",
            "add.quotas": "echo=1",
        },
    )
    said = re.sub(r"<[^>]+>", "", html)
    assert "node east: draining no → yes" in said
    assert f"run {run.pk}: priority 4 → 9" in said
    assert "node north: added – → capacity 2" in said
    assert "north supposed" in said
    assert not Node.objects.filter(name="north").exists()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"n{}.capacity": "0"}, "east: capacity: 0 is not a whole number from 1 to 10000"),
        ({"n{}.capacity": "many"}, "east.capacity: 'many' is not a whole number"),
        ({"n{}.capacity": "1"}, "east: capacity: 1 is below the quota"),
        ({"n{}.quotas": "echo"}, "quota: 'echo' is not like"),
        ({"n{}.quotas": "nothing=1"}, "east: quotas.0.task_type: 'nothing' is not a task type"),
        ({"n{}.draining": "perhaps"}, "east.draining: 'perhaps' is neither yes nor no"),
        ({"r1.priority": "11"}, "priority: 11 is not a whole number from 1 to 10"),
        ({"add.name": "east"}, "a node called 'east' exists already"),
        ({"add.capacity": "3"}, "add.name: is empty"),
        ({"add.name": "x", "add.types": "nothing"}, "x: types.0: 'nothing' is not a task type"),
    ],
)
def test_what_cannot_be_supposed_is_named_and_stays(
    browser: Client, east: Node, query: dict[str, str], said: str
) -> None:
    run = records.run(9, type="echo")
    asked = {name.format(east.pk).replace("r1.", f"r{run.pk}."): value for name, value in query.items()}
    html = page(browser, 400, **asked)
    assert said in html
    for value in asked.values():
        assert value in html


def test_nodes_are_found_by_name_and_few_are_shown(browser: Client, django_assert_max_num_queries) -> None:
    Node.objects.bulk_create(
        Node(name=f"n{at:04}", capacity=2, executors=["echo"], last_beat_at=timezone.now()) for at in range(1_000)
    )
    far = Node.objects.get(name="n0777")
    run = records.run(500, type="echo")
    assert "992 more nodes" in page(browser)
    assert f'name="n{far.pk}.capacity"' in page(browser, find="0777")
    assert f'name="n{far.pk}.capacity"' in page(browser, node=far.pk)
    with django_assert_max_num_queries(24):
        html = page(browser, run=run.pk, **{f"n{far.pk}.draining": "yes"})
    assert "999" not in html.partition("As it is: <b>")[2][:6]
    assert f"run {run.pk}" in html or f">{run.pk} <bdi>" in html


def test_pages_lead_there(browser: Client, east: Node) -> None:
    run = records.run(9, type="echo")
    assert f'href="/what-if?run={run.pk}"' in page_of(browser, f"/runs/{run.pk}")
    assert f'href="/what-if?node={east.pk}"' in page_of(browser, f"/nodes/{east.pk}")


def page_of(browser: Client, address: str) -> str:
    return browser.get(address).content.decode()


def test_it_is_for_staff(client: Client) -> None:
    assert client.get("/what-if").status_code == 302
