"""A relay below a parent that has room for few segments: it is told whose each is before the next one is brought."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from dispatch.models import Run
from dispatch.relay import place, taking
from dispatch.relay.upward import Upward
from nodes import signing
from nodes.agent.config import AgentConfig
from tests.integration.factory import child, done, uploaded
from tests.unit.peers import Answer, Asked, Server, told

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("folder")]

PARENT = "p" * 32
ACCESS, SECRET, _ = signing.new_key()


class Narrow:
    """A parent that keeps ``room`` segments that no report has named, and answers 429 to more."""

    def __init__(self, server: Server, room: int) -> None:
        self.url = server.url
        self.room = room
        self.named: list[str] = []
        self.refused = 0
        self._unnamed: set[str] = set()
        server.answers = [self._answer]

    def _answer(self, asked: Asked) -> Answer:
        if asked.method == "PUT":
            if len(self._unnamed) == self.room:
                self.refused += 1
                return told(429, {"detail": "no room"}, Retry_After="0")
            self._unnamed.add(asked.path.rsplit("/", 1)[1])
            return told(201, {})
        body, verb = json.loads(asked.body or b"{}"), asked.path.rsplit("/", 1)[1]
        if verb == "report":
            segments = [each["segment"] for each in body["reports"] if each.get("segment")]
            self.named += segments
            self._unnamed -= set(segments)
            results = [
                {"allocation": each["allocation"], "part": each.get("part", 0), "status": 200}
                for each in body["reports"]
            ]
            return told(200, {"results": results})
        return told(200, {"capacity": 4, "beat_seconds": 60, "path": [[PARENT, "root"]], "work": [], "cancel": []})


@pytest.fixture
def above(monkeypatch: pytest.MonkeyPatch) -> Iterator[Narrow]:
    monkeypatch.setattr(settings, "CASCADE", settings.CASCADE.model_copy(update={"role": "relay"}))
    monkeypatch.setattr(place, "here", place.Place(capacity=4))
    with Server() as server:
        yield Narrow(server, room=1)


def test_what_was_brought_is_named_though_the_next_finds_no_room(above: Narrow, tmp_path: Path) -> None:
    mine = child(capacity=3)
    run = {"type": "echo", "params": {}, "timeout": 60.0, "priority": 5, "shard_size": 1}
    work = [[70, 9, 0, 3, 1, ["a", "b", "c"]]]
    assert taking.take(PARENT, {"runs": {"9": run}, "work": work, "slots": {"70": 3}}).held == [70]
    for each in mine.works():
        (entry,) = uploaded([done(each)])
        assert mine.statuses(entry) == [200]
    line = AgentConfig(above.url, ACCESS, SECRET, carrier="pull", data_dir=tmp_path / "agent")
    upward = Upward(line, "1")
    upward.start()
    try:
        deadline = time.monotonic() + 20
        while taking.held(PARENT) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert taking.held(PARENT) == []
    finally:
        upward.stop()
    assert above.refused >= 2
    assert len(above.named) == len(set(above.named)) == 3
    assert Run.objects.get(origin__allocation=70).shards.filter(state="saved").count() == 3
