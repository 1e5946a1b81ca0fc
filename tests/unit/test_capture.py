"""Whose log it is that something is printed to: shards that run side by side in one process."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from nodes.agent import capture


@contextmanager
def apart() -> Iterator[io.StringIO]:
    """What the process itself prints, with logs kept apart. No fixture: between those and a test, pytest puts its own
    streams back."""
    other = io.StringIO()
    root = logging.getLogger()
    handlers = root.handlers[:]
    with redirect_stdout(other), redirect_stderr(other):
        capture.keep_apart()
        try:
            yield other
        finally:
            capture._apart = False
            root.handlers[:] = handlers


def side_by_side(*shards: Callable[[], object]) -> list[str]:
    """Their logs, each from a thread; all have begun before one ends."""
    logs = ["" for _ in shards]
    all_there = threading.Barrier(len(shards))

    def run(number: int) -> None:
        with capture.log() as log:
            all_there.wait(10)
            shards[number]()
            all_there.wait(10)
        logs[number] = log.text()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return logs


def test_what_shards_print_and_log_side_by_side_is_each_ones_own():
    def talks(name: str) -> Callable[[], None]:
        def talk() -> None:
            print(f"{name} printed")
            print(f"{name} to stderr", file=sys.stderr)
            logging.getLogger("anything").warning("%s logged", name)

        return talk

    with apart() as nobodys:
        first, second = side_by_side(talks("first"), talks("second"))
    assert first.splitlines() == ["first printed", "first to stderr", "first logged"]
    assert second.splitlines() == ["second printed", "second to stderr", "second logged"]
    assert nobodys.getvalue() == ""


def test_what_no_shard_prints_or_logs_is_the_processes_own():
    def starts_a_thread() -> None:
        thread = threading.Thread(target=print, args=("of a thread of its own",))
        thread.start()
        thread.join()

    with apart() as nobodys:
        assert side_by_side(starts_a_thread) == [""]
        print("outside")
        logging.getLogger("anything").warning("logged")
    assert nobodys.getvalue().splitlines() == ["of a thread of its own", "outside", "logged"]


def test_what_asyncio_runs_in_a_thread_is_its_shards_own():
    def talk() -> None:
        asyncio.run(asyncio.to_thread(print, "from afar"))

    with apart():
        assert side_by_side(talk, lambda: None) == ["from afar\n", ""]


def test_one_that_closes_its_output_leaves_the_others_theirs():
    def closes() -> None:
        with sys.stdout as out:
            print("still here", file=out, flush=True)

    with apart() as nobodys:
        assert [side_by_side(closes), side_by_side(closes)] == [["still here\n"], ["still here\n"]]
    assert not nobodys.closed


def test_alone_in_a_process_all_that_is_printed_is_the_shards(capsys):
    with capture.log() as log:
        thread = threading.Thread(target=print, args=("of a thread of its own",))
        thread.start()
        thread.join()
        print("and here")
    print("outside")
    assert log.text().splitlines() == ["of a thread of its own", "and here"]
    assert capsys.readouterr().out == "outside\n"
