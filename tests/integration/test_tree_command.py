"""``manage.py tree``: what hangs below this server, as far as it is known without asking."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone

from nodes.models import Node
from tests.integration.records import hold, node
from tests.integration.test_run_commands import command, ended, told

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]

COUNTS = {"nodes": 26, "leaves": 25, "online": 24, "capacity": 60, "used": 40, "queued": 5, "depth": 2}
PARIS = {"name": "paris", "role": "relay", "state": "online", "capacity": 60, "used": 40, "queued": 5}
PARIS_COUNTS = {"nodes": 24, "leaves": 24, "online": 23, "capacity": 58, "used": 39, "queued": 5, "depth": 1}
N1 = {"name": "n1", "role": "child", "state": "offline", "capacity": 2, "used": 0, "queued": 0, "below": None}
SUBTREE = {**COUNTS, "children": [{**PARIS, "below": PARIS_COUNTS}, N1], "more": 0}


@pytest.fixture
def tree() -> list[Node]:
    now = timezone.now()
    eu = node("eu", role="relay", subtree=SUBTREE, subtree_at=now, version="0.1.0", capacity=99)
    here = node("here", capacity=8, version="0.1.0", last_beat_at=now - dt.timedelta(seconds=3))
    hold(here, 2)
    hold(here, 1, "pending")
    return [eu, here, node("local", role="standalone", capacity=1)]


def lines(*arguments: str) -> list[list[str]]:
    return [line.split() for line in command("tree", *arguments).splitlines()]


@pytest.mark.usefixtures("tree")
def test_it_draws_the_levels_that_are_known_with_totals_of_branches() -> None:
    top, head, eu, paris, n1, here, local = lines()
    assert " ".join(top[1:]) == "26/28 nodes online, 42/68 slots in use, 6 queued, 3 levels"
    assert head == ["NODE", "ROLE", "STATE", "SLOTS", "QUEUED", "BEAT", "VERSION", "BELOW"]
    assert " ".join(eu).startswith("├── eu relay online 40/60 5 0 s ago 0.1.0 24/26 nodes online, 40/60 slots in use")
    assert " ".join(paris).startswith("│ ├── paris relay online 39/58 5 - - 23/24 nodes online")
    assert n1 == ["│", "└──", "n1", "child", "offline", "0/2", "-", "-", "-"]
    assert here[:6] == ["├──", "here", "child", "online", "2/8", "1"]
    assert local[:4] == ["└──", "local", "standalone", "online"]


@pytest.mark.usefixtures("tree")
def test_one_level_is_its_own_nodes_only() -> None:
    assert [line[1] for line in lines("--depth", "1")[2:]] == ["eu", "here", "local"]


@pytest.mark.usefixtures("tree")
def test_as_json_it_nests() -> None:
    found = told("tree")
    assert (found["below"]["online"], found["live"]) == (26, True)
    eu, here, _ = found["nodes"]
    assert [each["name"] for each in eu["nodes"]] == ["paris", "n1"]
    assert (here["used"], here["queued"], here["id"]) == (2, 1, Node.objects.get(name="here").pk)


def test_of_many_children_the_rest_is_a_number(tree: list[Node]) -> None:
    Node.objects.filter(name="eu").update(subtree={**SUBTREE, "more": 24})
    assert ["│", "└──", "and", "24", "more"] in lines()


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--below", "eu/paris"), 5, "none is at work here"),
        (("--below", "rome"), 3, "no node is called 'rome'; there are: eu, here, local"),
        (("--below", "eu/../x"), 2, "'..' is no node's name"),
        (("--depth", "0"), 2, "--depth"),
    ],
)
def test_what_cannot_be_shown_says_why(arguments: tuple[str, ...], status: int, words: str) -> None:
    assert words in ended(status, "tree", *arguments)


@pytest.mark.usefixtures("tree")
def test_a_level_that_has_to_be_asked_for_and_cannot_be_says_so_in_its_place() -> None:
    found: Any = told("tree", "--depth", "3")
    assert "none is at work here" in found["nodes"][0]["problem"]
    assert "└── ? the running server" in command("tree", "--depth", "3")


def test_without_nodes_it_says_so() -> None:
    assert "nothing hangs below it" in command("tree")
