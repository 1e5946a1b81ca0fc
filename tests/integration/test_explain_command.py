"""``manage.py explain``: what it prints of items, shards and what is supposed. The rest is in test_run_commands."""

from __future__ import annotations

import re

import pytest

from dispatch import buckets
from dispatch.models import Allocation, Shard
from tests.integration.factory import child, dispatch, submit
from tests.integration.test_run_commands import command, ended, told

pytestmark = pytest.mark.django_db


def test_a_run_is_told_with_what_it_waits_for_and_its_place() -> None:
    child("a", 1)
    first, run = submit(2, priority=9), submit(2)
    dispatch()
    text = command("explain", str(run.pk))
    assert "Waits for: no free slot: 1 of 1 in use on 1 node." in text
    assert "Place in line: 2 of 2; before it 1 by priority." in text
    assert re.search(rf"{first.pk} +- +echo +priority 9, above 5", text)
    assert re.search(r"a +slots +no free slot: 1 in use, capacity 1", text)


def test_lists_end_at_the_limit() -> None:
    for number in range(4):
        child(f"n{number}", 1, types=["data_import"])
    text = command("explain", str(submit(1).pk), "--limit", "3")
    assert "n2" in text
    assert "n3" not in text
    assert "and 1 more (--limit)" in text


def test_an_item_and_a_shard_are_told_with_who_had_them() -> None:
    a = child("north", 1)
    run = submit(["x", "y"])
    (work,) = a.works()
    by_item = told("explain", str(run.pk), "--item", "x")
    assert by_item == told("explain", str(run.pk), "--index", "0")
    shard = Shard.objects.get()
    assert told("explain", "--shard", str(shard.pk))["attempts"] == by_item["attempts"]
    text = command("explain", str(run.pk), "--item", "x")
    assert f"item 0 (x), shard {shard.pk}, items 0 to 0 of run {run.pk}: executing." in text
    assert re.search(rf"{work.allocation} +0 to 0 +north +free capacity", text)
    text = command("explain", str(run.pk), "--item", "y")
    assert f"item 1 (y), in no shard yet of run {run.pk}: uncut." in text
    assert "Nobody had it yet." in text
    assert "Waits for: no free slot: 1 of 1 in use on 1 node." in text


def test_what_if_shows_nodes_starts_and_what_still_waits_and_does_nothing() -> None:
    child("a", 1, "echo=1/1", "echo[i2]=1", labels={"region": "eu"})
    child("b", 2)
    run, other = submit(9), submit(2, labels={"region": "us"})
    buckets.set_limit("feeds", 1.0, 1)
    dispatch()
    made = Allocation.objects.count()
    asked = (
        *("explain", "--if", "a.capacity=4", "--if", "a.quota.echo=2/3", "--if", "a.quota.echo[i2]=none"),
        *("--drain", "b", "--add", "new", "--if", "new.capacity=2", "--if", "new.types=echo"),
        *("--if", "new.label.region=us", "--priority", f"{other.pk}=9", "--rate", "feeds=2/4"),
    )
    answer = told(*asked)
    assert [(each["what"], each["field"], each["then"]) for each in answer["changes"]] == [
        ("node a", "capacity", 4),
        ("node a", "quota echo", "2 (limit 3)"),
        ("node a", "quota echo[i2]", None),
        ("node b", "draining", True),
        ("node new", "added", "capacity 2"),
        (f"run {other.pk}", "priority", 9),
        ("rate feeds", "limit", "2 a second, 4 at once"),
    ]
    assert {(each["run"], each["node"]) for each in answer["grants"]} == {(other.pk, "new"), (run.pk, "a")}
    text = command(*asked)
    assert "Supposed: node a: capacity 4 instead of 1." in text
    assert "Supposed: node new is there, capacity 2." in text
    assert "gives out 0 shards (0 items) as it is, and would give out 4 shards (4 items)." in text
    assert re.search(r"new \(supposed\) +online +2 +0 +0 +2 +0", text)
    assert re.search(rf"{other.pk} +0 to 0 +new +free capacity", text)
    assert re.search(rf"1 +{run.pk} +\d +no free slot: .*quota limit 3 of 3 for echo: 1 node", text)
    one = told(*asked, str(other.pk))
    assert {each["run"] for each in one["grants"]} == {other.pk}
    assert one["waiting"] == []
    assert Allocation.objects.count() == made


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--if", "a.capacity"), 2, "--if: 'a.capacity' is not like n1.capacity=8"),
        (("--if", "a.capacity=many"), 2, "--if: 'a.capacity=many': 'many' is not a whole number"),
        (("--if", "a.capacity=0"), 2, "a: capacity: 0 is not a whole number from 1"),
        (("--if", "a.draining=perhaps"), 2, "'perhaps' is neither yes nor no"),
        (("--if", "a.weight=nan"), 2, "'nan' is not a number"),
        (("--if", "a.quota.echo=x"), 2, "quota: 'echo=x' is not like"),
        (("--if", "a.quota.echo=9"), 2, "a: quotas.0.slots: 9 is above the node's capacity, 4"),
        (("--if", "a.quota.echo=none"), 2, "--if: 'a' has no quota for echo"),
        (("--if", "a.types=echo"), 2, "the types of a node that is there are its own to say"),
        (("--if", "b.capacity=2"), 3, "no node is called 'b'; there are: a"),
        (("--drain", "b"), 3, "no node is called 'b'"),
        (("--add", "a"), 4, "a node called 'a' exists already"),
        (("--add", "n", "--if", "n.types=nope"), 2, "n: types.0: 'nope' is not a task type"),
        (("--priority", "9"), 2, "--priority: '9' is not like 12=9"),
        (("--priority", "99=5"), 2, "99: run: 99 is not a run that goes on"),
        (("--rate", "feeds"), 2, "--rate: 'feeds' is not like"),
        (("--rate", "feeds=0"), 2, "feeds: per_second: 0.0 is not a number from 0.001"),
        (("--add", "n", "--item", "x"), 2, "--item: does not go with what is supposed"),
        (("--item", "x"), 2, "run: is needed"),
        (("1", "--item", "x", "--shard", "1"), 2, "--shard: is given beside --item"),
        (("1", "--limit", "0"), 2, "--limit: 0 is not from 1"),
        (("--shard", "99"), 3, "there is no shard 99"),
        (("99", "--item", "x"), 3, "there is no run 99"),
    ],
)
def test_a_wrong_question_is_named(arguments: tuple[str, ...], status: int, says: str) -> None:
    child("a", 4)
    assert says in ended(status, "explain", *arguments)
