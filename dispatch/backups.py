"""A copy of an embedded parent's control database, result store and spool that fit each other, in a folder.

The result store is held still meanwhile. So every row in its copy is one whose receipt the control database's copy
has, and no row is missing that the copy believes to be saved for good; what is neither saved for good nor in the result
store is in the receipts themselves or in the spool. Whatever lies between is settled by the ledger at the next start,
as after a crash.

A command asks the server for it by a file in the data folder, which the saver looks at: whoever can write there can
read all of it anyway.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path

from django.conf import settings
from django.db import connection

from dispatch.results.base import Store
from dispatch.results.store import ResultStore
from nodes.protocol import Conflict

CONTROL, RESULTS, SPOOL, DONE = "cascade.sqlite3", "results.duckdb", "spool", "done.json"


def wanted() -> Path:
    """The file that asks for a copy; in it stands the folder's name in the data folder."""
    return Path(settings.CASCADE.data_dir) / "backup.wanted"


def ask(folder: Path) -> None:
    """The server that holds the result store shall fill ``folder``, which is in the data folder."""
    beside = wanted().with_suffix(".new")
    beside.write_text(folder.name)
    beside.replace(wanted())


def answer(store: Store) -> None:
    """In the saver's thread: what was asked for is made, and ``done.json`` in it says so, or what went wrong."""
    if not wanted().exists():
        return
    folder = wanted().with_name(Path(wanted().read_text().strip()).name)
    wanted().unlink(missing_ok=True)
    if not folder.is_dir():
        return  # who asked has gone
    problem = ""
    try:
        fill(folder, store)
    except Exception as error:  # whatever it is, who waits is told
        problem = str(error) or type(error).__name__
    with suppress(OSError):
        beside = folder / f"{DONE}.new"
        beside.write_text(json.dumps({"problem": problem}))
        beside.replace(folder / DONE)


def fill(folder: Path, store: Store) -> None:
    """The copy. Raises Conflict where the parent is no embedded one; what else is raised says that it is not whole."""
    if connection.vendor != "sqlite" or not isinstance(store, ResultStore):
        raise Conflict("this parent is in PostgreSQL, which has backups of its own: see docs/backup.md")
    with store.still() as results:
        _copy_control(folder / CONTROL)
        # After the control database: a segment that goes now is one whose rows are in the result store.
        _link_spool(folder / SPOOL)
        for file in (results, results.with_name(results.name + ".wal")):
            if file.exists():
                # By another process: closing a file here would end the lock that DuckDB has on it.
                subprocess.run(["cp", "-p", str(file), str(folder / file.name)], check=True, capture_output=True)


def _copy_control(to: Path) -> None:
    with (
        closing(sqlite3.connect(str(connection.settings_dict["NAME"]))) as here,
        closing(sqlite3.connect(to)) as copy,
    ):
        here.backup(copy)  # in one step: one state, whoever writes meanwhile


def _link_spool(to: Path) -> None:
    """Segments never change, so a second name is a copy."""
    to.mkdir()
    for segment in sorted(Path(settings.CASCADE.spool).glob("*.arrow")):
        with suppress(FileNotFoundError):
            try:
                os.link(segment, to / segment.name)
            except FileExistsError:
                pass
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                # A spool on another file system.
                subprocess.run(["cp", "-p", str(segment), str(to / segment.name)], check=True, capture_output=True)
