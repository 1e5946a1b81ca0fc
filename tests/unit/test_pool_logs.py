"""What shards print reaches the pool's owner while they run, from processes and from threads that share one."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes.agent.pool import Pool
from nodes.executors.echo import Echo
from tests.unit.test_pool import SOON, result, shard


class Heard(queue.Queue[Any]):
    """In place of ``nodes.agent.logs.Logs``."""

    def hear(self, allocation: int, offset: int, text: str) -> None:
        self.put((allocation, offset, text))

    def anew(self, allocation: int) -> None:
        self.put(allocation)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def pool(tmp_path: Path, heard: Heard) -> Iterator[Pool]:
    pool = Pool(4, str(tmp_path), lambda *_: None, logs=heard)  # type: ignore[arg-type]  # it has all that is used
    yield pool
    pool.stop()


@pytest.mark.parametrize("waits", [False, True], ids=["processes", "threads"])
def test_what_a_shard_prints_is_heard_before_it_ends_and_its_report_has_all(pool, heard, waits, monkeypatch):
    monkeypatch.setattr(Echo, "waits", waits)
    tasks = [pool.start([shard("a", "b", allocation=each, seconds=0.6, log=f"of {each}")], SOON) for each in (1, 2)]
    # The second item is still to come: of a bundle that has ended nothing is passed on.
    said = {heard.get(timeout=SOON) for _ in tasks}
    assert said == {(1, 0, "of 1\n"), (2, 0, "of 2\n")}
    assert [result(task)[0]["log"] for task in tasks] == ["of 1\nof 1\n", "of 2\nof 2\n"]
    result(pool.start([shard("a", allocation=3, log="at once")], SOON))
    result(pool.start([shard("a", "b", allocation=-4, seconds=0.6, log="nobody's")], SOON))
    assert heard.empty()


def test_when_a_shared_process_dies_what_runs_again_says_so(pool, heard, monkeypatch):
    monkeypatch.setattr(Echo, "waits", True)
    talks = pool.start([shard("a", "b", allocation=1, seconds=0.6, log="hello")], SOON)
    assert heard.get(timeout=SOON) == (1, 0, "hello\n")
    dies = pool.start([shard("a", allocation=2, crash_items=["a"])], SOON)
    assert {heard.get(timeout=SOON), heard.get(timeout=SOON)} == {1, 2}
    assert heard.get(timeout=SOON) == (1, 0, "hello\n")
    assert result(talks)[0]["log"] == "hello\nhello\n"
    assert dies.exception(SOON)
