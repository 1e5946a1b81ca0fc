"""Leadership by an advisory lock, with real processes on a real server: one leads, and whoever has lost the lock has
stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cascade.local import ROOT
from tests.acceptance.trees import until
from tests.servers import Postgresql, postgresql_server

LEADS = "SELECT split_part(application_name, ' ', 3)::int FROM pg_stat_activity WHERE application_name LIKE '% leads %'"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgresql]:
    with postgresql_server() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE tick (number bigserial, pid int)")
            connection.execute("CREATE TABLE job (by int)")
            connection.execute("INSERT INTO job VALUES (0)")
        yield server


@pytest.fixture(autouse=True)
def _nothing_yet(server: Postgresql) -> None:
    ask(server, "TRUNCATE tick")


def ask(server: Postgresql, query: str) -> list[Any]:
    """The first column; nothing while the server is away."""
    try:
        with closing(psycopg.connect(server.url, autocommit=True)) as connection:
            cursor = connection.execute(query)
            return [row[0] for row in cursor.fetchall()] if cursor.description else []
    except psycopg.OperationalError:
        return []


@contextmanager
def candidates(
    server: Postgresql, folder: Path, count: int, **env: str
) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """So many processes, by their ids."""
    # What ends the transactions of a frozen process shall be its successor, not time.
    url = f"{server.url}&options=-c%20idle_in_transaction_session_timeout%3D0"
    own = {"CASCADE_DATABASE_URL": url, "CASCADE_DATA_DIR": str(folder), "CASCADE_CONFIG": "", **env}
    argv = [sys.executable, "-m", "tests.scale.candidate"]
    started = []
    try:
        for number in range(count):
            with (folder / f"{number}.log").open("wb") as log:
                started.append(subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **own}, stdout=log, stderr=log))
        yield {process.pid: process for process in started}
    finally:
        for process in started:
            process.kill()
            process.wait()
        until(lambda: not ask(server, LEADS), what="the end of all sessions")


def leader(server: Postgresql, among: Any, but: int = 0) -> int:
    """The process that leads, and has written since."""

    def found() -> int:
        leads = [pid for pid in ask(server, LEADS) if pid in among and pid != but]
        ticked = ask(server, "SELECT pid FROM tick ORDER BY number DESC LIMIT 1")
        return leads[0] if leads and leads == ticked else 0

    return int(until(found, what="a leader at work"))


def written(server: Postgresql) -> list[int]:
    """Who wrote, in turns: [7, 9] where 7 wrote first and then only 9."""
    turns: list[int] = []
    for pid in ask(server, "SELECT pid FROM tick ORDER BY number"):
        if turns[-1:] != [pid]:
            turns.append(pid)
    return turns


def test_one_leads_and_another_when_it_is_killed_or_has_ended(server, tmp_path):
    with candidates(server, tmp_path, 3) as all_of_them:
        first = leader(server, all_of_them)
        all_of_them[first].kill()
        second = leader(server, all_of_them, but=first)
        # Asked to end, it stops its loops before another leads.
        all_of_them[second].terminate()
        third = leader(server, all_of_them, but=second)
        assert all_of_them[second].wait(20) == 0
        assert written(server) == [first, second, third]


def test_a_frozen_leader_is_succeeded_and_nothing_of_it_is_written_when_it_wakes(server, tmp_path):
    with candidates(server, tmp_path, 2, TICK="begun") as all_of_them:
        begun = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in tr%'"
        until(lambda: ask(server, begun), what="a transaction that has begun")
        (first,) = ask(server, LEADS)
        # It is frozen with a row locked, which the other one needs.
        os.kill(first, signal.SIGSTOP)
        (second,) = all_of_them.keys() - {first}
        until(lambda: ask(server, LEADS) == [second], what="another leader")
        os.kill(second, signal.SIGUSR1)
        assert leader(server, all_of_them) == second
        os.kill(first, signal.SIGUSR1)
        os.kill(first, signal.SIGCONT)
        # Its transaction goes on, and then its loop, until it stands by again: then a session of it waits.
        own = f"application_name LIKE 'cascade % {first} %' AND query LIKE '%pg_locks%'"
        waits = f"SELECT 1 FROM pg_stat_activity WHERE {own}"
        until(lambda: ask(server, waits), what="the woken one in line")
        assert leader(server, all_of_them) == second
        assert written(server) == [second]
        assert ask(server, "SELECT by FROM job") == [second]


def test_who_loses_its_connection_stops_and_may_lead_again_later(server, tmp_path):
    with candidates(server, tmp_path, 1) as all_of_them:
        only = leader(server, all_of_them)
        ask(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '% leads %'")
        ask(server, "TRUNCATE tick")
        assert leader(server, all_of_them) == only
        log = (tmp_path / "0.log").read_text()
        assert "leads no longer" in log
        assert log.count("this process leads\n") == 2
