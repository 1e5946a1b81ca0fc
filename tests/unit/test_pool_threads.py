"""Bundles that wait share a worker process as threads: what one of them does must not cost the others anything."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from nodes.agent import runner, serving
from nodes.agent.pool import Cancelled, Crashed, Pool, TimedOut
from nodes.executors.echo import Echo
from nodes.protocol import INLINE_ROWS
from tests.unit.test_pool import SOON, alive, result, shard, until, workers

LARGE = INLINE_ROWS + 1
DONE = [[0, 1, 1]]


@pytest.fixture(autouse=True)
def _waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool decides by it; a worker runs what it is given."""
    monkeypatch.setattr(Echo, "waits", True)


@pytest.fixture
def told() -> queue.Queue[tuple[int, int]]:
    return queue.Queue()


@pytest.fixture
def pool(tmp_path: Path, told: queue.Queue[tuple[int, int]]) -> Iterator[Pool]:
    pool = Pool(8, str(tmp_path), lambda *progress: told.put(progress))
    yield pool
    pool.stop()


def sleeping(seconds, *items, allocation=1, **params):
    return [shard(*(items or "a"), allocation=allocation, seconds=seconds, **params)]


def the_worker(bundles: int = 0) -> psutil.Process:
    """The only one, when it is there and so many bundles are at work in it."""
    until(workers)
    (worker,) = workers()
    # Beside them its own thread, and the one that ends it with the agent.
    until(lambda: worker.num_threads() >= 2 + bundles)
    return worker


@contextmanager
def halted(worker: psutil.Process) -> Iterator[None]:
    """It hangs as a whole, as one does whose thread never gives the interpreter back."""
    worker.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.resume()


def test_what_waits_runs_at_once_in_one_process(pool):
    result(pool.start([shard("first")], 10))
    began = time.monotonic()
    futures = [pool.start(sleeping(0.5, allocation=number), 10) for number in range(8)]
    own = the_worker()
    assert [result(future)[0]["allocation"] for future in futures] == list(range(8))
    assert time.monotonic() - began < 2
    assert the_worker() == own


def test_more_than_size_wait_their_turn_and_their_time_counts_from_then(tmp_path):
    pool = Pool(2, str(tmp_path), lambda *_: None)
    began = time.monotonic()
    futures = [pool.start(sleeping(0.3, allocation=number), 0.7) for number in range(6)]
    assert [result(future)[0]["ranges"] for future in futures] == [DONE] * 6
    assert time.monotonic() - began > 0.8
    pool.stop()


def test_what_computes_has_a_process_of_its_own_beside_them(pool, monkeypatch):
    waiting = [pool.start(sleeping(0.6), 10) for _ in range(4)]
    monkeypatch.setattr(Echo, "waits", False)
    computing = [pool.start(sleeping(0.6), 10) for _ in range(2)]
    until(lambda: len(workers()) == 3)
    assert [result(future)[0]["ranges"] for future in waiting + computing] == [DONE] * 6


def test_one_that_must_be_alone_has_a_process_of_its_own(pool):
    futures = [pool.start(sleeping(0.5), 10), pool.start(sleeping(0.5), 10, alone=True)]
    until(lambda: len(workers()) == 2)
    assert [result(future)[0]["ranges"] for future in futures] == [DONE] * 2


def test_a_full_process_gets_a_second_beside_it(pool, monkeypatch):
    monkeypatch.setattr("nodes.agent.workers.THREADS", 3)
    futures = [pool.start(sleeping(0.5), 10) for _ in range(5)]
    until(lambda: len(workers()) == 2)
    assert [result(future)[0]["ranges"] for future in futures] == [DONE] * 5
    assert len(workers()) == 2


def test_a_type_that_nobody_knows_is_a_failure_that_names_it(pool):
    (entry,) = result(pool.start([shard("a") | {"type": "nothing"}], 10))
    assert "'nothing' is not a task type" in entry["failure"]["message"]


def test_each_shard_has_its_own_log_and_nothing_of_the_others(pool):
    items = [str(number) for number in range(20)]
    bundles = [sleeping(0.01, *items, allocation=number, log=f"shard-{number}") for number in range(8)]
    futures = [pool.start(bundle, 30) for bundle in bundles]
    for number, future in enumerate(futures):
        assert result(future)[0]["log"].splitlines() == [f"shard-{number}"] * 20


def test_progress_says_whose_it_is(pool, told):
    futures = [pool.start(sleeping(0.6, "a", "b", allocation=number), 10) for number in (3, 4)]
    for future in futures:
        result(future)
    assert {told.get(timeout=SOON) for _ in range(4)} == {(3, 1), (3, 2), (4, 1), (4, 2)}


def test_an_order_to_end_earlier_reaches_the_bundle_it_is_about(pool):
    meant, other = (pool.start(sleeping(0.1, *"abcd", allocation=number), 10) for number in (1, 2))
    pool.shorten(meant, 1, 2)
    assert result(meant)[0]["stopped"] == 2
    assert result(other)[0]["ranges"] == [[0, 4, 4]]


def test_the_same_rows_at_once_are_one_segment(pool, tmp_path):
    futures = [pool.start([shard("a", allocation=number, rows=10_000)], 30) for number in range(16)]
    (segment,) = {result(future)[0]["segment"] for future in futures}
    assert [file.name for file in tmp_path.iterdir()] == [f"{segment}.arrow"]


# A bundle that must end


@pytest.mark.parametrize("verdict", [TimedOut, Cancelled])
def test_it_ends_at_once_and_the_others_in_its_process_go_on(pool, verdict):
    beside = pool.start(sleeping(0.3, *"abcd", allocation=2), 30)
    ending = pool.start(sleeping(60), 0.3 if verdict is TimedOut else 60)
    own = the_worker(bundles=2)
    began = time.monotonic()
    if verdict is Cancelled:
        assert ending.cancel()
    with pytest.raises(verdict):
        result(ending)
    assert time.monotonic() - began < 2
    assert not ending.cancel()
    # Its thread cannot be killed, so what comes now goes elsewhere.
    assert result(pool.start([shard("c")], 10))[0]["ranges"] == DONE
    assert own in workers()
    assert len(workers()) == 2
    assert result(beside)[0]["ranges"] == [[0, 4, 4]]
    until(lambda: not alive([own]))


@pytest.mark.parametrize("verdict", [TimedOut, Cancelled])
def test_alone_in_its_process_it_ends_with_that(pool, verdict):
    ending = pool.start(sleeping(60), 0.3 if verdict is TimedOut else 60)
    own = the_worker()
    if verdict is Cancelled:
        ending.cancel()
    with pytest.raises(verdict):
        result(ending)
    until(lambda: not alive([own]))


def test_a_time_is_kept_by_a_process_that_had_nothing_to_do(pool):
    result(pool.start([shard("a")], 10))
    with pytest.raises(TimedOut):
        result(pool.start(sleeping(60), 0.3))


def test_all_that_are_cancelled_together_end_with_their_process(pool):
    ending = [pool.start(sleeping(60), 60) for _ in range(4)]
    own = the_worker()
    began = time.monotonic()
    for future in ending:
        future.cancel()
    until(lambda: not alive([own]))
    assert time.monotonic() - began < 2
    for future in ending:
        with pytest.raises(Cancelled):
            result(future)


def test_all_that_time_out_together_do_so_once(pool, told):
    ending = [pool.start(sleeping(0.55, *"abc"), 1.0) for _ in range(4)]
    for future in ending:
        with pytest.raises(TimedOut):
            result(future)
    assert told.qsize() <= 4, "nobody's first item was done twice, nor its second heard of"


def test_nothing_is_kept_of_what_comes_too_late_and_then_its_process_is_as_good_as_new(pool, tmp_path):
    """Their first item ends after the time-out, and no other is begun."""
    late = sleeping(0.6, *"abcdefgh", rows=LARGE)
    handed = [sleeping(0.6, allocation=-1)[0] | {"result": str(tmp_path / "result.json")}]
    beside = pool.start(sleeping(60), 60)
    own = the_worker(bundles=1)
    ending = [pool.start(late, 0.3), pool.start(handed, 0.3)]
    for future in ending:
        with pytest.raises(TimedOut):
            result(future)
    until(lambda: not pool._workers[0].late)
    assert result(pool.start([shard("c")], 10))[0]["ranges"] == DONE
    assert workers() == [own]
    assert list(tmp_path.iterdir()) == []
    assert not beside.done()


def test_a_result_is_there_or_its_file_is_not(pool, tmp_path):
    """Time-outs that fall together with ends: whoever is told of a time-out finds no result afterwards."""
    beside = pool.start(sleeping(1), 30)
    ends = {}
    for number in range(1, 60):
        file = tmp_path / f"{number}.json"
        bundle = sleeping(0.1, rows=100, allocation=-number)
        ends[file] = pool.start([bundle[0] | {"result": str(file)}], 0.09 + number / 500)
    outcomes = {file: future.exception(SOON) for file, future in ends.items()}
    result(beside)
    assert {type(error) for error in outcomes.values()} - {type(None)} == {TimedOut}
    for file, error in outcomes.items():
        assert file.exists() is (error is None)
        if error is None:
            json.loads(file.read_text())


def test_a_thread_that_never_ends_ends_with_its_process_in_the_end(pool, monkeypatch):
    monkeypatch.setattr("nodes.agent.pool.LATE_SECONDS", 0.3)
    beside = pool.start(sleeping(60), 60)
    ending = pool.start(sleeping(60), 0.2)
    own = the_worker(bundles=2)
    with pytest.raises(TimedOut):
        result(ending)
    until(lambda: not alive([own]))
    until(lambda: [worker for worker in workers() if worker != own])
    assert not beside.done(), "it runs again"


# A process that dies or hangs


def test_of_many_in_a_process_that_dies_only_the_one_that_killed_it_is_blamed(pool):
    innocent = [pool.start(sleeping(0.6, allocation=number), 30) for number in range(7)]
    poison = pool.start(sleeping(0, "ok", "bad", allocation=7, crash_items=["bad"]), 30)
    with pytest.raises(Crashed, match="exit status 70"):
        result(poison)
    assert [result(future)[0]["ranges"] for future in innocent] == [DONE] * 7


def test_a_killed_process_costs_its_bundles_time_and_nothing_else(pool):
    futures = [pool.start(sleeping(0.3, "a", "b", allocation=number), 30) for number in range(4)]
    the_worker(bundles=4).kill()
    assert [result(future)[0]["ranges"] for future in futures] == [[[0, 2, 2]]] * 4


def test_one_that_was_alone_in_a_process_that_was_killed_has_crashed(pool):
    running = pool.start(sleeping(60), 60)
    the_worker(bundles=1).kill()
    with pytest.raises(Crashed, match="signal 9"):
        result(running)


def test_one_that_is_left_of_a_process_killed_because_of_another_runs_again(pool):
    """The other one may end by itself between the decision and the death."""
    running = pool.start(sleeping(0.3, "a", "b"), 30)
    the_worker(bundles=1)
    pool._workers[0].kill(Crashed("because of another"))
    assert result(running)[0]["ranges"] == [[0, 2, 2]]


def test_one_that_was_cancelled_does_not_come_back_when_its_process_dies(pool):
    beside, ending = (pool.start(sleeping(0.3, "a", "b"), 30) for _ in range(2))
    own = the_worker(bundles=2)
    with halted(own):  # so that it cannot answer before it dies
        ending.cancel()
        own.kill()
    with pytest.raises(Cancelled):
        result(ending)
    assert result(beside)[0]["ranges"] == [[0, 2, 2]]


def test_one_that_is_cancelled_when_its_time_is_out_does_not_come_back_either(pool):
    beside, ending = pool.start(sleeping(0.3), 30), pool.start(sleeping(60), 0.5)
    own = the_worker(bundles=2)
    with halted(own):
        until(lambda: ending.verdict)
        ending.cancel()
        own.kill()
    with pytest.raises(Cancelled):
        result(ending)
    assert result(beside)[0]["ranges"] == DONE


def test_what_was_asked_of_a_bundle_holds_when_it_runs_again(pool):
    futures = [pool.start(sleeping(0.2, *"abcd", allocation=number), 30) for number in range(2)]
    own = the_worker(bundles=2)
    pool.shorten(futures[1], 1, 2)
    own.kill()
    assert result(futures[1])[0]["stopped"] == 2
    assert "stopped" not in result(futures[0])[0]


def test_a_process_killed_while_idle_costs_nothing(pool):
    result(pool.start([shard("a")], 10))
    own = the_worker()
    own.kill()
    until(lambda: not alive([own]))  # idle when it dies: what it was given before would count as its doing
    futures = [pool.start([shard("b")], 10) for _ in range(4)]
    assert [result(future)[0]["ranges"] for future in futures] == [DONE] * 4


def test_of_a_process_that_hangs_only_the_one_that_hangs_alone_is_blamed(pool, monkeypatch):
    """All in it are late, and none of them can say whose fault it is."""
    monkeypatch.setattr("nodes.agent.pool.ANSWER_SECONDS", 0.3)
    innocent = [pool.start(sleeping(0.3, allocation=number), 1.0) for number in range(3)]
    hanging = pool.start(sleeping(60, allocation=3), 1.0)
    own = the_worker(bundles=4)
    with halted(own):
        with pytest.raises(TimedOut):
            result(hanging)
        assert [result(future)[0]["ranges"] for future in innocent] == [DONE] * 3
    assert not alive([own])


def test_a_cancel_in_a_process_that_hangs_takes_effect_within_two_seconds(pool):
    beside, ending = (pool.start(sleeping(0.3, "a", "b"), 60) for _ in range(2))
    with halted(the_worker(bundles=2)):
        began = time.monotonic()
        ending.cancel()
        with pytest.raises(Cancelled):
            result(ending)
        assert time.monotonic() - began < 2.5
        assert result(beside)[0]["ranges"] == [[0, 2, 2]]


def test_nobody_waits_for_a_process_that_hangs_and_what_never_reached_it_runs_among_others(pool):
    running = [pool.start(sleeping(0.3, "a", "b"), 60) for _ in range(2)]
    own = the_worker(bundles=2)
    long = "x" * 1_000_000  # more than a pipe holds
    with halted(own):
        began = time.monotonic()
        later = [pool.start([shard(long + str(number), rows=0)], 60) for number in range(4)]
        assert time.monotonic() - began < 1
        own.kill()
        assert [result(future)[0]["ranges"] for future in later] == [[[0, 1, 0]]] * 4
        assert [result(future)[0]["ranges"] for future in running] == [[[0, 2, 2]]] * 2
    assert len(workers()) == 3, "one for each of two that may have been at fault, one for the others"


def test_a_thread_that_breaks_in_whatever_way_answers(monkeypatch):
    class Odd(BaseException):
        pass

    def breaks(*_: object) -> None:
        raise Odd("ways")

    monkeypatch.setattr(runner, "work", breaks)
    said: queue.Queue[tuple] = queue.Queue()
    job = serving._Job(7, [], {}, "", said.put)
    job.start()
    verb, number, outcome = said.get(timeout=SOON)
    assert (verb, number, str(outcome)) == ("done", 7, "Odd: ways")
    # What has ended cannot be dropped any more: the agent would wait for a second end.
    job.hear("drop")
    assert said.empty()


def test_what_is_being_kept_is_not_dropped_any_more(monkeypatch):
    keeping, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(runner, "work", lambda *_: [])

    def keep(*_: object) -> list[str]:
        keeping.set()
        assert go_on.wait(SOON)
        return ["kept"]

    monkeypatch.setattr(runner, "keep", keep)
    said: queue.Queue[tuple] = queue.Queue()
    job = serving._Job(7, [], {}, "", said.put)
    job.start()
    assert keeping.wait(SOON)
    drop = threading.Thread(target=job.hear, args=("drop",))
    drop.start()
    drop.join(0.1)
    go_on.set()
    drop.join()
    assert [said.get(timeout=SOON)] == [("done", 7, ["kept"])]
    assert said.empty()


def test_a_result_that_does_not_travel_is_an_answer_too(monkeypatch):
    monkeypatch.setattr(runner, "work", lambda *_: [])
    monkeypatch.setattr(runner, "keep", lambda *_: [{"allocation": 1, "outcomes": threading.Lock()}])
    ours, theirs = multiprocessing.Pipe()
    serving._Job(7, [], {}, "", theirs.send).start()
    assert ours.poll(SOON)
    _, number, outcome = ours.recv()
    assert number == 7
    assert "pickle" in str(outcome)


def test_a_result_that_cannot_be_read_costs_its_process_not_the_pool(pool):
    """As one with an object of a module that only the worker can import."""
    running = pool.start(sleeping(0.5), 30)
    own = the_worker(bundles=1)
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes(b"no pickle")
    pool._hear(replace(pool._workers[0], pipe=ours))
    until(lambda: not alive([own]))
    with pytest.raises(Crashed):
        result(running)
    assert result(pool.start([shard("a")], 10))[0]["ranges"] == DONE


def test_a_large_result_travels_in_one_piece(monkeypatch):
    """Between two, another thread could take the interpreter for ever, and the agent would wait for the second."""
    ours, theirs = multiprocessing.Pipe()
    pieces: list[bytes] = []
    reader = threading.Thread(target=lambda: pieces.append(ours.recv_bytes()))
    reader.start()
    writes = []
    write = os.write

    def counted(*call: Any) -> int:
        writes.append(call)
        return write(*call)

    monkeypatch.setattr(os, "write", counted)
    serving._send_whole(theirs, b"x" * 1_000_000)
    reader.join(SOON)
    assert pieces == [b"x" * 1_000_000]
    assert len(writes) == 1


# The pool's own end, and its load


def test_a_closed_pool_finishes_what_runs(tmp_path):
    pool = Pool(4, str(tmp_path), lambda *_: None)
    running = [pool.start(sleeping(0.5, allocation=number), 10) for number in range(4)]
    own = the_worker()
    pool.close()
    assert [result(future)[0]["ranges"] for future in running] == [DONE] * 4
    until(lambda: not alive([own]))


def test_a_stop_ends_all_and_nothing_starts_again(tmp_path):
    pool = Pool(4, str(tmp_path), lambda *_: None)
    running = [pool.start(sleeping(60, allocation=number), 100) for number in range(6)]
    own = the_worker(bundles=4)
    began = time.monotonic()
    pool.stop()
    for future in running:
        with pytest.raises(Cancelled):
            result(future)
    assert time.monotonic() - began < 3
    assert not alive([own])
    assert workers() == []


def test_without_work_for_a_while_the_process_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("nodes.agent.workers.IDLE_SECONDS", 0.2)
    pool = Pool(2, str(tmp_path), lambda *_: None)
    result(pool.start(sleeping(0.4), 10))
    until(lambda: not alive(workers()))
    assert result(pool.start([shard("b")], 10))[0]["ranges"] == DONE
    pool.stop()


def test_every_bundle_ends_whatever_happens_to_it_and_those_beside_it(tmp_path):
    """Starts and cancels from four threads, time-outs, crashes, and processes that are killed."""
    pool = Pool(8, str(tmp_path), lambda *_: None)
    over = threading.Event()
    seen: dict[str, list] = {"fine": [], "cancelled": [], "timed out": [], "crashed": []}

    def customer(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(40):
            kind = chance.choice(["fine"] * 6 + ["cancelled", "timed out", "crashed"])
            seconds = {"fine": 0.02, "cancelled": 60, "timed out": 60, "crashed": 0.01}[kind]
            bundle = [shard(f"{seed}-{number}", "end", seconds=seconds, crash_items=["end"] * (kind == "crashed"))]
            future = pool.start(bundle, 0.1 if kind == "timed out" else 30)
            if kind == "cancelled":
                time.sleep(chance.random() / 20)
                future.cancel()
            seen[kind].append(future)
            if chance.random() < 0.3:
                future.exception(SOON)

    def killer() -> None:
        while not over.wait(0.4):
            for process in workers()[:1]:
                os.kill(process.pid, signal.SIGKILL)

    threads = [threading.Thread(target=customer, args=(seed,)) for seed in range(4)]
    murder = threading.Thread(target=killer)
    for thread in [*threads, murder]:
        thread.start()
    for thread in threads:
        thread.join()
    ends = {kind: [future.exception(60) for future in futures] for kind, futures in seen.items()}
    over.set()
    murder.join()
    assert {type(error) for error in ends["crashed"]} == {Crashed}
    # One that was alone in its process when that was killed is blamed for it, as it would be with a process of its own.
    assert Cancelled in {type(error) for error in ends["cancelled"]} <= {Cancelled, Crashed}
    assert {type(error) for error in ends["timed out"]} <= {TimedOut, Crashed}
    assert {type(error) for error in ends["fine"]} <= {type(None), Crashed}
    assert sum(error is None for error in ends["fine"]) > len(ends["fine"]) / 2
    pool.stop()
