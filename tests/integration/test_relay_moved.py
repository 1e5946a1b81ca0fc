"""Messages about another server's work are refused; a relay that was moved drops what was the old parent's."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from api.agent import perform
from dispatch.lifecycle.kept import about, beyond, frozen, remembered
from dispatch.models import Allocation, Origin, Run
from dispatch.relay import place, taking
from dispatch.relay.upward import Upward
from dispatch.states import RunState
from nodes import signing
from nodes.agent.config import AgentConfig
from nodes.protocol import Misdirected
from tests.integration.factory import Child, child, dispatch, done, state, submit
from tests.unit.peers import Answer, Asked, Server, told

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("folder")]

OLD, NEW = "a" * 32, "b" * 32
ACCESS, SECRET, _ = signing.new_key()


def test_a_message_about_another_servers_work_changes_nothing() -> None:
    mine = child()
    submit(1)
    dispatch()
    (work,) = mine.claim()
    entry = done(work)
    said: dict[str, dict[str, Any]] = {
        "accept": {"allocations": [work.allocation]},
        "beat": {"hello": True, "held": []},
        "claim": {"slots": 1},
        "release": {"allocations": [work.allocation]},
        "report": {"reports": [entry]},
    }
    for verb, body in said.items():
        with pytest.raises(Misdirected):
            perform(mine.caller, verb, {**body, "parent": OLD})
    assert mine.live() == 1
    reply = perform(mine.caller, "beat", {"held": [work.allocation], "parent": place.own()})
    assert (reply["parent"], reply["cancel"]) == (place.own(), [])
    assert perform(mine.caller, "report", {"reports": [entry]})["results"][0]["status"] == 200


class Above:
    """The new parent: it gives out an allocation with the number that one of the old parent's has."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.beats: dict[str, Any] = {}
        """What its answers to beats say beside."""
        self.work: list[list[Any]] = [[70, 9, 0, 2, 1, ["new0", "new1"]]]
        server.answers = [self._answer]

    def said(self, verb: str) -> list[dict[str, Any]]:
        return [body for each, body in self.bodies if each == verb]

    def _answer(self, asked: Asked) -> Answer:
        body, verb = json.loads(asked.body or b"{}"), asked.path.rsplit("/", 1)[1]
        if body.get("parent", NEW) != NEW:
            return told(421, {"detail": "another server"})
        self.bodies.append((verb, body))
        if verb == "claim":
            work, self.work = self.work, []
            runs = {"9": {"type": "echo", "params": {}, "timeout": 60.0, "priority": 5, "shard_size": 2}}
            return told(200, {"work": work, "runs": runs, "slots": {"70": 2}, "cancel": []})
        if verb == "report":
            results = [
                {"allocation": each["allocation"], "part": each.get("part", 0), "status": 200}
                for each in body["reports"]
            ]
            return told(200, {"results": results})
        beat = {"capacity": 4, "beat_seconds": 0.2, "path": [[NEW, "new"]], "cancel": [], "parent": NEW}
        return told(200, {**beat, **self.beats})


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(settings, "CASCADE", settings.CASCADE.model_copy(update={"role": "relay"}))
    monkeypatch.setattr(place, "here", place.Place())
    for read_once in (about, beyond, frozen, remembered):
        read_once.cache_clear()


@pytest.fixture
def above() -> Iterator[Above]:
    with Server() as server:
        yield Above(server)


def moved(above: Above, folder: Path) -> Upward:
    return Upward(
        AgentConfig(
            parent=above.url,
            access_key=ACCESS,
            secret_key=SECRET,
            data_dir=folder / "agent",
            carrier="pull",
        ),
        "1",
    )


def until(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def old_work(mine: Child) -> Run:
    """Of the old parent's allocation 70, half of it done and not passed on."""
    run = {"type": "echo", "params": {}, "timeout": 60.0, "priority": 5, "shard_size": 2}
    items = [f"old{number}" for number in range(4)]
    message = {"runs": {"5": run}, "work": [[70, 5, 0, 4, 1, items]], "slots": {"70": 1}}
    assert taking.take(OLD, message).held == [70]
    (work, *_) = mine.works()
    assert mine.statuses(done(work)) == [200]
    return Run.objects.get(origin__allocation=70)


@pytest.mark.usefixtures("relay")
def test_a_relay_that_was_moved_begins_with_nothing_though_the_ids_are_the_same(above: Above, tmp_path: Path) -> None:
    mine = child(capacity=1)
    old = old_work(mine)
    upward = moved(above, tmp_path)
    upward.start()
    try:
        origin = until(lambda: Origin.objects.filter(parent=NEW, allocation=70).first())
        hello = above.said("beat")[0]
        assert (hello["hello"], hello["held"]) == (True, [])
        until(lambda: state(old) == RunState.CANCELLED)
        assert Origin.objects.filter(parent=OLD, closed_at=None).count() == 0
        (work,) = [each for each in mine.works() if each.run == origin.pk]
        assert mine.statuses(done(work)) == [200]
        until(lambda: not taking.held(NEW))
    finally:
        upward.stop()
        connection.close()
    rows = [row for body in above.said("report") for entry in body["reports"] for row in entry["rows"]]
    assert sorted(row[0] for row in rows) == ["new0", "new1"]


@pytest.mark.usefixtures("relay")
def test_a_parent_of_tomorrow_is_understood_as_far_as_it_goes(above: Above, tmp_path: Path) -> None:
    child(capacity=1)
    above.beats = {"protocol": 1, "of_tomorrow": {"deep": []}, "limits": {"unheard_of": 3}}
    upward = moved(above, tmp_path)
    upward.start()
    try:
        until(lambda: Origin.objects.filter(parent=NEW, allocation=70).first())
    finally:
        upward.stop()
        connection.close()
    assert above.said("beat")[0]["protocol"] == 1


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize(
    ("said", "why"),
    [({"protocol": 0}, "we 1 to 1: update the parent"), ({"path": None}, "knows no relays, .* update the parent")],
)
def test_a_parent_too_old_is_named_and_gets_nothing_of_a_relay(
    above: Above, tmp_path: Path, caplog: pytest.LogCaptureFixture, said: dict[str, Any], why: str
) -> None:
    above.beats = said
    upward = moved(above, tmp_path)
    upward.start()
    try:
        until(lambda: re.search(why, caplog.text))
    finally:
        upward.stop()
        connection.close()
    assert {verb for verb, _ in above.bodies} == {"beat"}
    assert not Origin.objects.exists()


@pytest.mark.usefixtures("relay")
def test_one_that_was_only_restarted_goes_on(above: Above, tmp_path: Path) -> None:
    mine = child(capacity=1)
    run = old_work(mine)
    Origin.objects.filter(pk=run.pk).update(parent=NEW)
    above.work = []
    upward = moved(above, tmp_path)
    upward.start()
    try:
        hello = until(lambda: above.said("beat"))[0]
        assert (hello["held"], hello["parent"]) == ([70], NEW)
        until(lambda: above.said("report"))
    finally:
        upward.stop()
        connection.close()
    entries = [entry for body in above.said("report") for entry in body["reports"]]
    assert all((entry["part"], entry["ranges"]) == (1, [[0, 2, 2, 0]]) for entry in entries)  # perhaps said again
    # And what it could not finish before it stopped goes back to where it came from.
    assert above.said("release")[0]["allocations"] == [70]
    assert not Allocation.objects.filter(run=run, state__in=("pending", "executing")).exists()
