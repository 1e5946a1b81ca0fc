"""The copy that a backup is made from: control database, result store and spool as of one moment."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from django.db import connection

from dispatch import backups
from tests.integration.factory import child, done, save, saver, submit, uploaded

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has tools of its own for this"),
]


@pytest.fixture
def copy(folder: Path) -> Path:
    made = folder / "copy"
    made.mkdir()
    return made


def ledger(copy: Path) -> list[Any]:
    with closing(duckdb.connect(str(copy / backups.RESULTS), read_only=True)) as results:
        return results.execute("SELECT start FROM ledger ORDER BY start").fetchall()


def receipts(copy: Path) -> list[Any]:
    with closing(sqlite3.connect(copy / backups.CONTROL)) as control:
        return control.execute("SELECT saved_at IS NOT NULL FROM dispatch_receipt ORDER BY id").fetchall()


def test_what_is_saved_while_the_copy_is_made_is_in_neither_database(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = child()
    submit(2)
    first, second = a.works()
    with saver() as made:
        a.report(done(first))
        save(made)
        a.report(done(second))
        control = backups._copy_control

        def meanwhile() -> None:
            made.once()
            connection.close()

        saving = threading.Thread(target=meanwhile)

        def copying(to: Path) -> None:
            control(to)
            saving.start()
            saving.join(0.5)  # where nothing holds it back it is done by then

        monkeypatch.setattr(backups, "_copy_control", copying)
        backups.fill(copy, made.store)
        saving.join()
        assert receipts(copy) == [(1,), (0,)]
        assert ledger(copy) == [(0,)]
        # And afterwards it was saved.
        assert made.store.recorded([(second.run, second.start, second.stop)])


def test_segments_that_wait_are_in_the_copy_even_if_they_go_afterwards(copy: Path, settings: Any) -> None:
    a = child()
    submit(1)
    (work,) = a.works()
    (entry,) = uploaded([done(work)])
    a.report(entry)
    with saver() as made:
        backups.fill(copy, made.store)
        save(made)
        made._settle()
    assert list(settings.CASCADE.spool.glob("*.arrow")) == []
    assert [path.stem for path in (copy / backups.SPOOL).iterdir()] == [entry["segment"]]


def test_who_asks_is_told_what_went_wrong(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, store: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backups, "fill", full)
    with saver() as made:
        backups.ask(copy)
        backups.answer(made.store)
        assert "No space left" in json.loads((copy / backups.DONE).read_text())["problem"]
        assert not backups.wanted().exists()
