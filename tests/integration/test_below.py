"""What hangs below a relay: kept from its beats, and asked of it down the line that it keeps open."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone

from dispatch.models import Question
from dispatch.relay import asking, place, subtree
from nodes import messages, registry
from nodes.fields import parse_quota
from nodes.models import Node
from nodes.protocol import CascadeError, FieldError, NoAnswer, NotFound, TooMany
from tests.integration.factory import Child, child, dispatch, submit

pytestmark = pytest.mark.django_db(transaction=True)

PARIS = {"name": "paris", "role": "relay", "state": "online", "capacity": 9, "used": 2, "queued": 1}
SAID = {"nodes": 3, "leaves": 2, "online": 3, "capacity": 9, "used": 2, "queued": 1, "depth": 2}


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "here", place.Place())


def relay(name: str = "eu", **subtree: Any) -> Child:
    mine = child(name, capacity=50)
    beat(mine, hello=True, subtree={**SAID, "children": [PARIS], "more": 0, **subtree})
    return mine


def beat(mine: Child, **more: Any) -> dict[str, Any]:
    return mine.beat(role="relay", id=f"{mine.id:032x}", slots=9, types={"echo": 9}, branches=[{}], **more)


async def run(work: Callable[..., Any], *args: Any) -> Any:
    def within() -> Any:
        try:
            return work(*args)
        finally:
            close_old_connections()

    return await asyncio.to_thread(within)


Answering = Callable[[dict[str, Any]], dict[str, Any]]


async def asked(mine: Child, path: list[str], answering: Answering, *, within: float = 20.0) -> Any:
    """What whoever asks gets, where the relay answers a question as ``answering`` says."""
    asking_ = asyncio.create_task(asking.ask(run, mine.id, path, within))
    while not (questions := (await run(beat, mine)).get("ask")):
        await asyncio.sleep(0)
    (question,) = questions
    body = {"answers": [{"id": question["id"], **answering(question)}]}
    assert (await run(asking.told, mine.caller, messages.read_tell(body))) == {"taken": [question["id"]]}
    return await asking_


# In short, with each beat


def test_what_a_relay_says_of_its_subtree_is_kept_with_its_node() -> None:
    mine, other = relay(), relay("us", nodes=7)
    assert mine.node.subtree == {**SAID, "children": [{**PARIS, "below": None}], "more": 0}
    assert mine.node.subtree_at is not None
    beat(mine, subtree={**SAID, "online": 2})
    assert (mine.node.subtree["online"], other.node.subtree["nodes"]) == (2, 7)  # type: ignore[index]


def test_a_child_that_is_no_relay_has_no_subtree() -> None:
    mine = child()
    mine.beat(subtree={**SAID, "children": [PARIS]})
    assert (mine.node.subtree, mine.node.role) == (None, "child")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"nodes": -1}, "subtree.nodes"),
        ({"capacity": 1.5}, "subtree.capacity"),
        ({"children": [PARIS] * 101}, "subtree.children"),
        ({"children": [{**PARIS, "state": "well"}]}, r"subtree.children\[0\].state"),
        ({"children": [{**PARIS, "role": {"x": 1}}]}, r"subtree.children\[0\].role"),
        ({"children": [{**PARIS, "below": [1]}]}, r"subtree.children\[0\].below"),
    ],
)
def test_nonsense_in_it_is_refused_by_name_and_changes_nothing(said: dict[str, Any], field: str) -> None:
    mine = relay()
    with pytest.raises(FieldError, match=field):
        beat(mine, subtree={**SAID, **said})
    assert mine.node.subtree is not None
    assert mine.node.subtree["nodes"] == 3


def test_what_this_server_says_upwards_counts_what_runs_and_what_waits_at_its_nodes() -> None:
    mine, other = child("a", capacity=2), child("b", capacity=3)
    submit(3)
    dispatch()
    (work, *_) = mine.works() + other.works()
    mine.beat(running=[work.allocation], held=[work.allocation])
    relay("paris")
    told = subtree.now()
    assert {name: told[name] for name in ("nodes", "leaves", "online", "depth")} == {
        "nodes": 6,
        "leaves": 4,
        "online": 6,
        "depth": 3,
    }
    assert told["capacity"] == 2 + 3 + 9
    assert told["used"] + told["queued"] == 3 + 3
    assert [each["name"] for each in told["children"]] == ["paris", "a", "b"]


# In full, when asked


def in_full() -> dict[str, Any]:
    found = subtree.in_full()
    return {**found, "children": {each["name"]: each for each in found["children"]}}


def test_in_full_a_node_is_told_as_its_parent_knows_it_and_the_asker_reads_it_so() -> None:
    mine = child("a", capacity=4, labels={"zone": "x"})
    registry.set_quotas(mine.id, [parse_quota("echo=2/3")])
    mine.beat(cpu=12.5, version="9.9", carrier="push", config=7)
    Node.objects.filter(pk=mine.id).update(speeds={"echo": 0.5, "echo@3": 0.1})
    told = in_full()["children"]["a"]
    assert (told["state"], told["allowed"], told["version"], told["config_version"]) == ("online", 4, "9.9", 7)
    assert told["quotas"] == [{"task_type": "echo", "item": "", "slots": 2, "limit": 3}]
    assert (told["labels"], told["speeds"], told["cpu"]) == ({"zone": "x"}, {"echo": 0.5}, 12.5)
    assert told["beat_seconds_ago"] < 60
    (read,) = messages.read_tell({"answers": [{"id": 1, "body": subtree.in_full()}]})
    assert read.body == subtree.in_full()


async def test_a_question_reaches_the_relay_once_and_its_answer_whoever_asked() -> None:
    mine = await run(relay)
    there = await run(subtree.in_full)
    found = await asked(mine, [], lambda question: {"status": 200, "body": there})
    assert found == there
    assert not await run(Question.objects.exists)


async def test_a_claim_brings_it_too() -> None:
    mine = await run(relay)
    asking_ = asyncio.create_task(asking.ask(run, mine.id, ["paris"], 20.0))
    while not (questions := (await run(mine.claimed)).get("ask")):
        await asyncio.sleep(0)
    assert [each["path"] for each in questions] == [["paris"]]
    assert "ask" not in await run(beat, mine)  # it is on its way already
    asking_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking_
    assert not await run(Question.objects.exists)


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (504, NoAnswer)], ids=["nobody of that name", "further down nobody answers"]
)
async def test_what_a_relay_cannot_say_it_says_why(status: int, error: type[CascadeError]) -> None:
    mine = await run(relay)
    with pytest.raises(error, match="lyon is not here"):
        await asked(mine, ["lyon"], lambda question: {"status": status, "detail": "lyon is not here"})


async def test_a_branch_that_does_not_answer_is_named_after_the_time_given() -> None:
    mine = await run(relay)
    with pytest.raises(NoAnswer, match=r"eu does not answer: asked 0.1 s ago"):
        await asking.ask(run, mine.id, [], 0.1)
    assert not await run(Question.objects.exists)


async def test_what_is_no_relay_or_not_there_has_nothing_below_it() -> None:
    mine = await run(child)
    with pytest.raises(NotFound, match="a is no relay"):
        await asking.ask(run, mine.id, [])
    with pytest.raises(NotFound, match="no node 999999"):
        await asking.ask(run, 999_999, [])


async def test_of_a_relay_that_is_gone_it_is_what_it_said_last_with_its_age() -> None:
    mine = await run(relay)
    past = timezone.now() - dt.timedelta(hours=1)
    await run(lambda: Node.objects.filter(pk=mine.id).update(last_beat_at=past, subtree_at=past))
    found = await asking.ask(run, mine.id, [])
    assert (found["live"], found["below"]["nodes"]) == (False, 3)
    assert 3600 <= found["seconds_ago"] < 3700
    assert [(each["name"], each["capacity"], each["version"]) for each in found["children"]] == [("paris", 9, None)]
    messages.read_tell({"answers": [{"id": 1, "body": found}]})  # so it may travel further up
    with pytest.raises(NoAnswer, match=r"eu is offline, heard of 60 min ago: paris is below it"):
        await asking.ask(run, mine.id, ["paris"])


async def test_only_so_many_questions_wait_for_one_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "OPEN_LIMIT", 1)
    mine = await run(relay)
    await run(lambda: Question.objects.create(node=mine.node, within=5.0))
    with pytest.raises(TooMany, match="is being asked"):
        await asking.ask(run, mine.id, [])
    # Whose asker has vanished is in nobody's way.
    await run(lambda: Question.objects.update(asked_at=timezone.now() - 2 * asking.KEPT))
    with pytest.raises(NoAnswer):
        await asking.ask(run, mine.id, [], 0.05)


def test_answers_to_other_nodes_questions_and_to_none_are_nobodys() -> None:
    mine, other = relay(), relay("us")
    question = Question.objects.create(node=other.node, path=[], within=5.0)
    answer = {"id": question.pk, "status": 404, "detail": "no"}
    assert asking.told(mine.caller, messages.read_tell({"answers": [answer, {**answer, "id": 999_999}]})) == {
        "taken": []
    }
    question.refresh_from_db()
    assert question.answered_at is None
    assert asking.told(other.caller, messages.read_tell({"answers": [answer]})) == {"taken": [question.pk]}
    # What was answered stays so.
    assert asking.told(other.caller, messages.read_tell({"answers": [answer]})) == {"taken": []}


# A relay between


async def test_what_is_further_down_is_asked_by_the_relay_itself() -> None:
    """This server is the relay; below it hangs paris."""
    mine = await run(relay, "paris")
    there = {**await run(subtree.in_full), "node": "paris"}
    answering = asyncio.create_task(asking.answer(run, ["paris", "lyon"], 20.0))
    while not (questions := (await run(beat, mine)).get("ask")):
        await asyncio.sleep(0)
    (question,) = questions
    assert (question["path"], question["within"]) == (["lyon"], 20.0 - asking.HOP_SECONDS)
    await run(asking.told, mine.caller, messages.read_tell({"answers": [{"id": question["id"], "body": there}]}))
    assert await answering == there
    assert (await asking.answer(run, [], 1.0))["node"] == settings.CASCADE.called


async def test_a_name_that_nobody_has_is_told_with_those_that_there_are() -> None:
    await run(relay, "paris")
    with pytest.raises(NotFound, match=r"below .*: no node is called 'lyon'; there are: paris"):
        await asking.answer(run, ["lyon"], 5.0)


async def test_where_no_time_is_left_nobody_is_asked() -> None:
    await run(relay, "paris")
    with pytest.raises(NoAnswer, match="no time left to ask paris"):
        await asking.answer(run, ["paris"], asking.HOP_SECONDS)
    assert not await run(Question.objects.exists)
