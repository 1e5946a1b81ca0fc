"""A lake under several processes: each shard once whoever saves it and whenever, and nothing lost with a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dispatch.results.base import StoreBusy
from dispatch.results.lake import LakeStore
from dispatch.results.lake_place import Place
from dispatch.results.lake_tidying import Tidying
from nodes.protocol import Conflict
from tests.integration.lake_writer import PAIRS, shard
from tests.integration.lakes import emptied, place, server, shared, store

__all__ = ["emptied", "place", "server", "shared", "store"]

pytestmark = pytest.mark.timeout(300)

Writer = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def writer() -> Iterator[Writer]:
    """Starts processes that save shards; ``appends`` has the shards of each of their appends."""
    started: list[subprocess.Popen[str]] = []

    def start(store: LakeStore, appends: Sequence[Sequence[int]], allocation: int, failpoint: str = ""):
        place = store.place
        told = ",".join("+".join(map(str, starts)) for starts in appends)
        argv = [sys.executable, "-m", "tests.integration.lake_writer"]
        argv += [place.database, place.path, place.schema, told, str(allocation)]
        environ = {**os.environ, "CASCADE_FAILPOINTS": failpoint}
        process = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for each in started:
        each.kill()
        each.communicate()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def stopped(process: subprocess.Popen[str]) -> bool:
    """Whether a SIGSTOP has taken hold of it."""
    assert process.poll() is None, process.communicate()
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def once_each(store: LakeStore, starts: set[int]) -> dict[int, int]:
    """That each of ``starts`` is in the ledger and has its rows, once; the allocation of each."""
    with store.reader() as connection:
        ledger = connection.execute("SELECT start, allocation FROM ledger").fetchall()
    rows = Counter(row[0] for row in rows_of(store, raw=True, columns=["item"]))
    assert Counter(start for start, _ in ledger) == dict.fromkeys(starts, 1)
    assert rows == {f"i{start}": 2 for start in starts}
    return dict(ledger)


def rows_of(store: LakeStore, **how: Any) -> list[list[Any]]:
    return [list(row.values()) for row in store.select("pairs", **how).read_all().to_pylist()]


def files(store: LakeStore) -> set[Path]:
    assert store.place.folder is not None
    return {path for path in store.place.folder.rglob("*") if path.is_file()}


# Exactly once


def test_four_processes_that_save_the_same_shards_save_each_once(emptied: LakeStore, writer: Writer) -> None:
    emptied.ensure(PAIRS)
    writers, wanted = [], set[int]()
    for number in range(4):
        # Each has 50 shards, half of which the next one has, too; never the same five in one append.
        mine = [(number * 27 + each) % 100 for each in range(50)]
        wanted |= set(mine)
        writers.append(writer(emptied, [mine[at : at + 5] for at in range(0, 50, 5)], 10 + number))
    told = Counter[str]()
    for each in writers:
        out, err = each.communicate(timeout=280)
        assert each.returncode == 0, err
        told.update(line.split()[0] for line in out.splitlines())
    assert told.total() == 200
    saved = once_each(emptied, wanted)
    assert told["saved"] == len(saved) == len(wanted)


def test_who_was_frozen_before_its_commit_and_wakes_after_its_successor_saves_nothing(
    emptied: LakeStore, writer: Writer
) -> None:
    emptied.append([shard(0)])
    frozen = writer(emptied, [[1], [2]], 10, "store.rows=stop")
    until(lambda: stopped(frozen))
    assert emptied.append([shard(1, 11)]) == 2  # who follows does not wait for it
    os.kill(frozen.pid, signal.SIGCONT)
    out, err = frozen.communicate(timeout=60)
    assert (frozen.returncode, out.split()) == (0, ["there", "1", "saved", "2"]), err
    assert once_each(emptied, {0, 1, 2})[1] == 11


def test_a_frozen_writer_is_refused_even_when_what_came_between_is_forgotten_already(
    emptied: LakeStore, writer: Writer
) -> None:
    """DuckLake numbers its states; with those between expired, a number from before them would be free again."""
    emptied.append([shard(0)])
    frozen = writer(emptied, [[1]], 10, "store.rows=stop")
    until(lambda: stopped(frozen))
    emptied.append([shard(1, 11)])
    emptied.append([shard(2, 11)])
    tidied(emptied)
    os.kill(frozen.pid, signal.SIGCONT)
    out, err = frozen.communicate(timeout=60)
    assert (frozen.returncode, out.split()) == (0, ["there", "1"]), err
    assert once_each(emptied, {0, 1, 2})[1] == 11


def test_a_frozen_writer_whose_connections_were_ended_fails_and_lives(emptied: LakeStore, writer: Writer) -> None:
    emptied.ensure(PAIRS)
    frozen = writer(emptied, [[1]], 10, "store.rows=stop")
    until(lambda: stopped(frozen))
    assert end_connections(emptied.place.database, "writer 10") >= 1
    os.kill(frozen.pid, signal.SIGCONT)
    _, err = frozen.communicate(timeout=60)
    assert (frozen.returncode, "StoreBusy" in err) == (1, True), err  # an exception, not an abort
    once_each(emptied, set())


@pytest.mark.parametrize("point", ["store.rows", "store.committed"])
def test_a_kill_around_the_commit_leaves_a_shard_saved_whole_or_not_at_all(
    emptied: LakeStore, point: str, writer: Writer
) -> None:
    emptied.ensure(PAIRS)
    killed = writer(emptied, [[1]], 10, f"{point}=kill")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert (emptied.recorded([(1, 1, 2)]) == {(1, 1, 2): 10}) is (point == "store.committed")
    if point == "store.rows":
        emptied.append([shard(1, 11)])
    else:
        with pytest.raises(Conflict):
            emptied.append([shard(1, 11)])
    once_each(emptied, {1})


def end_connections(server: str, name: str = "") -> int:
    """The server ends what connections there are, of processes whose name begins so."""
    with psycopg.connect(server, autocommit=True) as control:
        found = control.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND pid <> pg_backend_pid() AND starts_with(application_name, %s)",
            [name],
        )
        return len(found.fetchall())


# PostgreSQL goes away


def test_a_commit_whose_answer_is_lost_keeps_its_files_and_is_found_in_the_ledger(emptied: LakeStore) -> None:
    """DuckLake itself would take the lost answer for a failure, and remove files that the catalogue lists."""
    emptied.ensure(PAIRS)
    connection = emptied._connection(writing=True)
    connection.begin()
    written = emptied.write_file("pairs_rows", shard(1).table)
    connection.execute("CALL ducklake_add_data_files('writing', 'pairs_rows', ?)", [written])
    end_connections(emptied.place.database)
    with pytest.raises(Exception, match=r"(?i)commit|connection|terminat"):
        connection.commit()
    emptied._let_go(connection)
    assert Path(written).exists()


def test_a_reader_whose_server_goes_away_is_an_error_and_not_the_end_of_the_process(emptied: LakeStore) -> None:
    emptied.append([shard(0)])
    with emptied.reader() as connection:
        connection.execute("SELECT count(*) FROM ledger").fetchall()
        end_connections(emptied.place.database)
    # Its end would have been an abort; and the next one finds a server again.
    assert emptied.recorded([(1, 0, 1)]) == {(1, 0, 1): 1}


def test_a_server_that_cannot_be_reached_is_said_without_its_password(tmp_path: Path) -> None:
    away = Place("postgresql://somebody:geheim@127.0.0.1:1/nowhere", str(tmp_path))
    with LakeStore(away) as store, pytest.raises(StoreBusy) as caught:
        store.tables()
    assert "geheim" not in str(caught.value)
    assert "geheim" not in repr(away)


# Who reads, and what it can reach


def test_another_process_reads_what_is_saved_and_can_write_nothing(emptied: LakeStore) -> None:
    emptied.append([shard(1)])
    with LakeStore(emptied.place, memory="200MB", writing=False) as other:
        assert len(rows_of(other)) == 2
        emptied.append([shard(2)])
        assert len(rows_of(other)) == 4
        with pytest.raises(Conflict, match="this one reads"):
            other.append([shard(3)])
        with other.reader() as connection, pytest.raises(Exception, match="read-only"):
            connection.execute("DELETE FROM lake.ledger")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/cascade-escaped.csv'",
        "ATTACH '/tmp/cascade-escaped.duckdb' AS other",
        "SET enable_external_access = true",
        "SET ducklake_max_retry_count = 10",
        "INSTALL spatial",
    ],
)
def test_the_lake_reaches_nothing_outside_its_folder_and_its_settings_stay(emptied: LakeStore, sql: str) -> None:
    emptied.tables()
    with emptied.reader() as connection, pytest.raises(Exception, match=r"(?i)permission|disabled|locked|cannot"):
        connection.execute(sql)


def test_processes_that_come_first_at_once_make_one_lake(place: Place, writer: Writer) -> None:
    stores = [LakeStore(place, memory="200MB") for _ in range(2)]
    first = [writer(each, [[number]], 10 + number) for number, each in enumerate(stores)]
    for each in first:
        _, err = each.communicate(timeout=280)
        assert each.returncode == 0, err
    with stores[0] as store:
        once_each(store, {0, 1})


# Tidying


def tidied(store: LakeStore, *, keep_seconds: float = 0) -> None:
    """As the leader does now and then, keeping nothing that is not needed."""
    # Twice, for what the first one forgets is removed by the second.
    for _ in range(2):
        Tidying(keep_seconds=keep_seconds).run(store._write, store.place)


def test_small_files_become_one_and_what_was_replaced_goes(store: LakeStore) -> None:
    tidied(store)
    for start in range(12):
        store.append([shard(start)])
    before = rows_of(store, raw=True)
    many = files(store)
    with store.reader() as connection:
        connection.execute("SELECT 1 FROM ledger").fetchall()  # an older state is being read meanwhile
        tidied(store, keep_seconds=3600)
        assert files(store) > many  # which may still need what was replaced
        assert len(connection.execute("SELECT * FROM pairs_rows").fetchall()) == 24
    tidied(store)
    assert len(files(store)) == 2  # rows and ledger
    assert rows_of(store, raw=True) == before
    once_each(store, set(range(12)))


def test_a_file_that_never_became_part_of_a_table_is_removed_in_time(store: LakeStore, writer: Writer) -> None:
    store.append([shard(0)])
    kept = files(store)
    killed = writer(store, [[1]], 10, "store.rows=kill")
    killed.communicate(timeout=60)
    assert len(files(store) - kept) == 2
    tidied(store, keep_seconds=3600)
    assert len(files(store) - kept) >= 2  # it may be somebody's who is about to commit
    tidied(store)
    assert len(files(store)) <= 2
    once_each(store, {0})


def test_no_file_of_a_frozen_writer_is_removed_and_then_listed(store: LakeStore, writer: Writer) -> None:
    store.append([shard(0)])
    frozen = writer(store, [[1]], 10, "store.rows=stop")
    until(lambda: stopped(frozen))
    tidied(store)  # takes its files for abandoned, and nobody else commits
    os.kill(frozen.pid, signal.SIGCONT)
    frozen.communicate(timeout=60)
    assert store.append([shard(2)]) == 2
    assert {row[0] for row in rows_of(store, columns=["item"])} <= {"i0", "i1", "i2"}  # every listed file is there


def test_tidying_that_was_cut_off_is_done_by_the_next_one(store: LakeStore) -> None:
    for start in range(3):
        store.append([shard(start)])
    tidied(store, keep_seconds=3600)  # merged; the small ones are listed as not needed
    for path in sorted(files(store))[:3]:
        if path.name.startswith("ducklake-"):
            continue
        path.unlink()  # as by a removal whose note in the catalogue was never committed
    tidied(store)
    once_each(store, {0, 1, 2})
    assert len(files(store)) == 2


def test_tidying_is_due_only_after_something_was_saved() -> None:
    tidying = Tidying(merge_seconds=0, keep_seconds=60)
    assert not tidying.due()
    tidying.note()
    assert tidying.due()


def test_paths_are_kept_relative_so_that_the_folder_can_move(store: LakeStore) -> None:
    store.append([shard(0)])
    with psycopg.connect(store.place.database) as control:
        found = control.execute(f"SELECT path_is_relative FROM {store.place.schema}.ducklake_data_file").fetchall()
    assert set(found) == {(True,)}
