"""Who ran what: shards and allocations name the nodes that did them, below relays by the way there."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from api.overview import Overview
from dispatch import leaves
from dispatch.models import Allocation, LeafWork, Receipt, Shard
from dispatch.pruning import prune
from tests.integration.factory import Work, child, done, partly, rows_of, save, saver, submit
from tests.integration.native import Api
from tests.integration.test_run_commands import command, told

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "kinds")]

WAYS = ["paris/3", "paris/4", "n1"]


def entry(work: Work, part: int, *ranges: tuple[int, int, int]) -> dict[str, Any]:
    """What a relay reports: (start, stop, number among WAYS)."""
    named = [[first, last, last - first, number] for first, last, number in ranges]
    indexes = [index for first, last, _ in ranges for index in range(first, last)]
    body = {"allocation": work.allocation, "ranges": named, "nodes": WAYS, "rows": rows_of(work, only=indexes)}
    return {**body, **({"part": part} if part else {})}


def ran_by(run: Any) -> dict[tuple[int, int], list[str]]:
    shards = list(Shard.objects.filter(run=run).order_by("start"))
    found = leaves.of_shards(shards)
    return {(each.start, each.stop): found[each.pk] for each in shards}


def begun(items: int = 10) -> tuple[Any, Any, Work]:
    eu = child("eu", capacity=1)
    run = submit(items, shard_size=items)
    (work,) = eu.works()
    return run, eu, work


def test_below_a_relay_each_shard_names_the_way_to_who_ran_it() -> None:
    run, eu, work = begun()
    assert eu.statuses(entry(work, 1, (2, 4, 1)), entry(work, 2, (0, 1, 0), (1, 2, 2))) == [200, 200]
    assert ran_by(run) == {
        (0, 1): ["eu/paris/3"],
        (1, 2): ["eu/n1"],
        (2, 4): ["eu/paris/4"],
        (4, 10): [],
    }
    assert eu.statuses(entry(work, 0, (4, 7, 0), (7, 10, 1))) == [200]
    assert ran_by(run)[7, 10] == ["eu/paris/4"]
    (allocation,) = Allocation.objects.select_related("node")
    assert leaves.of_allocations([allocation]) == {allocation.pk: ["eu/paris/3", "eu/n1", "eu/paris/4"]}


def test_a_shard_that_several_did_names_them_all() -> None:
    run, eu, work = begun()
    assert eu.statuses(entry(work, 0, (0, 4, 0), (4, 9, 1), (9, 10, 0))) == [200]
    assert ran_by(run) == {(0, 10): ["eu/paris/3", "eu/paris/4"]}


def test_what_a_node_of_ones_own_ran_names_that_node() -> None:
    mine = child("a", capacity=2)
    run = submit(4, shard_size=2)
    first, second = mine.works()
    assert mine.statuses(done(first)) == [200]
    assert mine.statuses(partly(second, 2)) == [200]
    assert ran_by(run) == {(0, 2): ["a"], (2, 3): [], (3, 4): ["a"]}


def test_it_is_told_after_what_was_reported_is_saved_and_gone_from_the_spool(api: Api) -> None:
    run, eu, work = begun(4)
    reports = [entry(work, 1, (0, 2, 0)), entry(work, 0, (2, 4, 2))]
    assert eu.statuses(*reports) == [200, 200]
    with saver() as made:
        save(made)
        made._settle()
    assert Receipt.objects.filter(purged_at=None).count() == 0
    (shard, other) = api.get(f"shards?run={run.pk}&ordering=start").body["results"]
    assert (shard["ran_by"], other["ran_by"]) == (["eu/paris/3"], ["eu/n1"])
    assert api.get(f"shards/{shard['id']}").body["ran_by"] == ["eu/paris/3"]
    (allocation,) = api.get(f"allocations?run={run.pk}").body["results"]
    assert allocation["ran_by"] == ["eu/paris/3", "eu/n1"]
    assert api.get(f"allocations/{work.allocation}").body["ran_by"] == ["eu/paris/3", "eu/n1"]
    (share,) = api.get(f"runs/{run.pk}/nodes").body
    assert (share["node"], share["leaves"]) == ("eu", {"eu/n1": 2, "eu/paris/3": 2})
    assert "eu/paris/3, eu/n1" in command("explain", "--allocation", str(work.allocation))
    assert told("explain", "--allocation", str(work.allocation))["ran_by"] == ["eu/paris/3", "eu/n1"]


def test_a_report_that_is_repeated_says_it_once() -> None:
    _, eu, work = begun()
    for _ in range(2):
        eu.statuses(entry(work, 1, (0, 4, 1)))
    assert LeafWork.objects.count() == 1


def test_the_overview_names_them_in_the_feed_of_allocations(browser: Client, overview: Overview) -> None:
    _, eu, work = begun()
    eu.beat(role="relay", id="a" * 32, slots=4, types={"echo": 4}, branches=[{}])
    eu.statuses(entry(work, 1, (0, 1, 0), (1, 2, 1), (2, 3, 2)))
    view: Any = overview.look().parts[f"allocation-{work.allocation}"].view
    assert view.ran_by == ("eu/paris/3", "eu/paris/4", "eu/n1")
    html = browser.get("/").content.decode()
    assert 'title="eu/paris/3, eu/paris/4, eu/n1"' in html
    assert "<small>+2</small>" in html


def test_it_is_forgotten_with_the_run() -> None:
    run, eu, work = begun(4)
    assert eu.statuses(entry(work, 0, (0, 4, 0))) == [200]
    with saver() as made:
        save(made)
        made._settle()
    run.refresh_from_db()
    assert prune(timezone.now(), days=0)["runs"] == 1
    assert LeafWork.objects.count() == 0
