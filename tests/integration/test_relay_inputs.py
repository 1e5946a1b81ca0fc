"""Rows of the tables above for a relay's nodes: fetched once, each node gets its part, and they go with their run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from django.conf import settings
from django.db import connection

from dispatch.lifecycle.kept import about, frozen
from dispatch.models import Allocation, Origin, Run
from dispatch.relay import forwarding, inputs, place, taking
from dispatch.relay.upward import Upward
from dispatch.results import inputs as served
from dispatch.states import RunState
from nodes import signing
from nodes.agent.config import AgentConfig
from nodes.protocol import NotYet, TooLarge, Unprocessable
from tests.integration.factory import Child, Work, child, done, fresh, state
from tests.unit.peers import Asked, Server, told

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("folder", "kinds", "relay")]

PARENT = "c" * 32
ACCESS, SECRET, _ = signing.new_key()


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(settings, "CASCADE", settings.CASCADE.model_copy(update={"role": "relay"}))
    monkeypatch.setattr(place, "here", place.Place())


def offered(*symbols: str, allocation: int = 70, slots: int = 2) -> dict[str, Any]:
    run = {"type": "reads", "params": {"most": 100}, "timeout": 60.0, "priority": 5, "shard_size": 1}
    work = [[allocation, 9, 100, 100 + len(symbols), 1, list(symbols)]]
    return {"runs": {"9": run}, "work": work, "slots": {str(allocation): slots}, "inputs": [allocation]}


def taken(*symbols: str, allocation: int = 70) -> Run:
    about.cache_clear()
    frozen.cache_clear()
    assert taking.take(PARENT, offered(*symbols, allocation=allocation)).held == [allocation]
    return Run.objects.get(origin__allocation=allocation)


def arrow(*symbols: str) -> bytes:
    """A row of each, as the node above sends them."""
    sink = pa.BufferOutputStream()
    table = pa.table({"symbol": list(symbols), "close": [float(at) for at, _ in enumerate(symbols)]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def rows_for(node: Child, work: Work, folder: Path) -> list[str]:
    """The symbols that ``node`` gets rows of for ``work``. Raises as what serves it."""
    file = folder / f"{work.allocation}.out"
    served.write(node.caller, work.allocation, file)
    with pa.OSFile(str(file)) as source:
        symbols: list[str] = pa.ipc.open_file(source).read_all()["symbol"].to_pylist()
    return symbols


def arrived(run: Run, content: bytes) -> None:
    """What the line to the parent does when the rows are here."""
    file = inputs.file_of(run.pk)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    inputs.brought(run.pk)


def test_they_are_asked_for_once_however_many_nodes_want_them(tmp_path: Path) -> None:
    node = child(capacity=2, types=["reads"])
    run = taken("A", "B")
    works = node.works()
    for work in works:
        with pytest.raises(NotYet) as raised:
            rows_for(node, work, tmp_path)
        assert (raised.value.status, raised.value.retry_after) == (503, inputs.RETRY_SECONDS)
    assert [origin.pk for origin in inputs.wanted(PARENT)] == [run.pk]
    assert inputs.wanted("q" * 32) == []
    arrived(run, arrow("A", "B"))
    assert inputs.wanted(PARENT) == []
    assert sorted(rows_for(node, work, tmp_path)[0] for work in works) == ["A", "B"]


def test_a_node_gets_its_part_and_one_that_has_all_of_it_the_whole(tmp_path: Path) -> None:
    node = child(capacity=2, types=["reads"])
    arrived(taken("A", "B"), arrow("A", "B", "B"))
    first, second = node.works()
    assert [rows_for(node, work, tmp_path) for work in (first, second)] == [["A"], ["B", "B"]]
    node.release(first.allocation, second.allocation)
    taking.drop(PARENT, [70])
    arrived(taken("A", allocation=71), arrow("A", "other"))
    (work,) = node.works()
    assert rows_for(node, work, tmp_path) == ["A", "other"]


def test_a_table_that_is_not_there_above_gives_no_rows(tmp_path: Path) -> None:
    node = child(types=["reads"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("symbol", pa.null()), ("close", pa.null())])):
        pass
    arrived(taken("A", "B"), sink.getvalue().to_pybytes())
    assert [rows_for(node, work, tmp_path) for work in node.works()] == [[], []]


def test_a_part_too_large_is_refused_and_a_relay_below_may_have_more_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = child(capacity=1, types=["reads"])
    arrived(taken("A", "B"), arrow("A", "B"))
    (work, *_) = node.works()
    monkeypatch.setattr(served, "SEGMENT_BYTES_LIMIT", 300)
    with pytest.raises(TooLarge, match="more than 300 bytes"):
        rows_for(node, work, tmp_path)
    Allocation.objects.filter(pk=work.allocation).update(slots=10)
    assert len(rows_for(node, work, tmp_path)) == 1


def test_what_the_parent_does_not_give_is_told_to_the_node(tmp_path: Path) -> None:
    node = child(types=["reads"])
    run = taken("A")
    (work,) = node.works()
    with pytest.raises(NotYet):
        rows_for(node, work, tmp_path)
    inputs.refused(run.pk, "413: too much")
    with pytest.raises(Unprocessable, match="413: too much"):
        rows_for(node, work, tmp_path)
    assert inputs.wanted(PARENT) == []


def files() -> set[str]:
    return {file.name for file in inputs.file_of(0).parent.iterdir()}


def test_they_go_when_their_run_has_ended_and_after_a_crash(tmp_path: Path) -> None:
    node = child(types=["reads"])
    first, second, third = taken("A"), taken("B", allocation=71), taken("C", allocation=72)
    for run in (first, second, third):
        arrived(run, arrow("A"))
    for work in node.works():
        if work.run == first.pk:
            entry = done(work)
            assert node.statuses({**entry, "rows": [["A", 1.0]]}) == [200]
    (last,) = [each for each in forwarding.due(PARENT) if each.last]
    forwarding.settled(last)
    taking.drop(PARENT, [71])
    assert files() == {f"{third.pk}.arrow"}
    Origin.objects.filter(pk=third.pk).update(closed_at=third.created_at)  # and the process was killed
    inputs.sweep()
    assert files() == set()


def test_rows_that_come_after_their_run_has_ended_are_not_kept() -> None:
    run = taken("A")
    taking.drop(PARENT, [70])
    arrived(run, arrow("A"))
    assert files() == set()


def test_the_disk_they_take_is_bounded_and_what_was_used_longest_ago_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = child(types=["reads"])
    runs = [taken("A", allocation=number) for number in (70, 71, 72)]
    for run in runs:
        arrived(run, arrow("A"))
        time.sleep(0.01)  # the file system's clock
    works = {work.run: work for work in node.works()}
    rows_for(node, works[runs[0].pk], tmp_path)
    limited = settings.CASCADE.model_copy(update={"relay_inputs_limit": 2 * len(arrow("A"))})
    monkeypatch.setattr(settings, "CASCADE", limited)
    inputs.make_room()
    assert files() == {f"{runs[0].pk}.arrow", f"{runs[2].pk}.arrow"}
    with pytest.raises(NotYet):  # and is fetched again
        rows_for(node, works[runs[1].pk], tmp_path)
    assert [origin.pk for origin in inputs.wanted(PARENT)] == [runs[1].pk]


class Above:
    """A parent that answers beats, and requests for rows as it is told."""

    def __init__(self, server: Server) -> None:
        self.fetched: list[str] = []
        self.answer = told(200, arrow("A", "B"))
        self.gate = threading.Event()
        self.gate.set()
        server.answers = [self._answer]

    def _answer(self, asked: Asked) -> Any:
        if "/inputs/" in asked.path:
            self.fetched.append(asked.path)
            self.gate.wait(20)
            return self.answer
        path = [[PARENT, "root"]]
        beat = {"capacity": 4, "beat_seconds": 60, "path": path, "work": [], "cancel": [], "results": []}
        return told(200, beat)


@pytest.fixture
def above(tmp_path: Path) -> Iterator[Above]:
    with Server() as server:
        made = Above(server)
        line = AgentConfig(
            parent=server.url, access_key=ACCESS, secret_key=SECRET, data_dir=tmp_path / "agent", carrier="pull"
        )
        upward = Upward(line, "1")
        upward.start()
        yield made
        upward.stop()
        connection.close()


def until(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def got(node: Child, work: Work, folder: Path) -> list[str] | None:
    try:
        return rows_for(node, work, folder)
    except NotYet:
        return None


def test_the_line_to_the_parent_fetches_them_once_for_all_that_wait(above: Above, tmp_path: Path) -> None:
    node = child(capacity=2, types=["reads"])
    taken("A", "B")
    above.gate.clear()
    works = node.works()
    assert [got(node, work, tmp_path) for work in works] == [None, None]
    until(lambda: above.fetched)
    assert [got(node, work, tmp_path) for work in works] == [None, None]
    above.gate.set()
    until(lambda: got(node, works[0], tmp_path))
    assert [got(node, work, tmp_path) for work in works] == [["A"], ["B"]]
    assert above.fetched == ["/api/v1/agent/inputs/70"]


def test_while_the_parent_is_away_nothing_counts_as_tried_and_it_goes_on_when_it_is_back(
    above: Above, tmp_path: Path
) -> None:
    node = child(types=["reads"])
    run = taken("A")
    good, above.answer = above.answer, told(503, {"detail": "away"}, Retry_After="0")
    (work,) = node.works()
    assert got(node, work, tmp_path) is None
    until(lambda: len(above.fetched) > 1)
    assert got(node, work, tmp_path) is None
    assert run.shards.get().attempts == 0
    above.answer = good
    until(lambda: got(node, work, tmp_path))


def test_what_the_parent_has_given_to_others_ends_here(above: Above, tmp_path: Path) -> None:
    node = child(types=["reads"])
    run = taken("A")
    above.answer = told(409, {"detail": "its lease was lost"})
    (work,) = node.works()
    assert got(node, work, tmp_path) is None
    until(lambda: state(run) == RunState.CANCELLED)
    assert node.live() == 0
    assert fresh(run).failed == 0
