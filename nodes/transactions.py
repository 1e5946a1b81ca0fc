"""``write()``: the transaction that every change of the control database runs in; and many rows at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import connection, models, transaction

_turn = threading.RLock()


@contextmanager
def write() -> Iterator[None]:
    """An atomic block; nested ones join it.

    SQLite has one writer at a time and lets the others poll with growing sleeps. Threads of this process
    take turns at a lock instead, which costs microseconds; other processes are met by IMMEDIATE and the busy time-out.
    """
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        with transaction.atomic():
            yield
        return
    with _turn, transaction.atomic():
        yield


def insert_rows(model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Many rows in one prepared statement: a tenth of what ``bulk_create`` costs, for tables written at every pass.

    ``columns`` are column names (``run_id``); all without a default in the database must be there. Values go to the
    driver as they are: pass times through ``moment``.
    """
    quote = connection.ops.quote_name
    names = ", ".join(quote(column) for column in columns)
    marks = ", ".join(["%s"] * len(columns))
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {quote(model._meta.db_table)} ({names}) VALUES ({marks})", list(rows))


def update_rows(
    model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]], states: Sequence[str]
) -> None:
    """Each row's own values, its id last, where it is still in one of ``states``. ``bulk_update`` costs five times."""
    quote = connection.ops.quote_name
    names = ", ".join(f"{quote(column)} = %s" for column in columns)
    expected = ", ".join(["%s"] * len(states))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"UPDATE {quote(model._meta.db_table)} SET {names} WHERE id = %s AND state IN ({expected})",
            [(*row, *states) for row in rows],
        )


def moment(at: datetime) -> Any:
    """``at`` as the database driver takes it."""
    return connection.ops.adapt_datetimefield_value(at)
