"""``write()``: the transaction that every change of the control database runs in; and many rows at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar, cast

from django.db import OperationalError, connection, models, transaction

from nodes import failpoints
from nodes.protocol import StorageFull

_turn = threading.RLock()


@contextmanager
def write() -> Iterator[None]:
    """An atomic block; nested ones join it.

    SQLite has one writer at a time and lets the others poll with growing sleeps. Threads of this process
    take turns at a lock instead, which costs microseconds; other processes are met by IMMEDIATE and the busy time-out.
    Raises StorageFull, and has changed nothing, where the database's disk has no room.
    """
    with room():
        if connection.in_atomic_block:
            with transaction.atomic():
                yield
            return
        with _turn if connection.vendor == "sqlite" else nullcontext(), transaction.atomic():
            yield
            failpoints.reach("write.committing")
        failpoints.reach("write.committed")


@contextmanager
def room() -> Iterator[None]:
    """Raises StorageFull for the database's own words for it, so that whoever sent something keeps it."""
    try:
        yield
    except OperationalError as error:
        cause = error.__cause__
        if getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == _DISK_FULL:
            raise StorageFull(f"no room for the parent's database: {error}") from error
        raise


_DISK_FULL = "53100"
"""PostgreSQL's SQLSTATE for it."""


Verb = TypeVar("Verb", bound=Callable[..., Any])
_DEADLOCKS = ("40P01", "40001")
"""SQLSTATE of a deadlock and of a serialization failure: the transaction is undone, and may be tried again."""
DEADLOCK_TRIES = 6


def retried(verb: Verb) -> Verb:
    """Runs ``verb``, which opens its own ``write()``, again where PostgreSQL undid it to break a deadlock.

    Two verbs may need the same rows in another order: a cancel goes from the run to its shards, a report from its
    shards to their run. What was undone has done nothing, so that doing it again is safe.
    """

    @wraps(verb)
    def again(*args: Any, **kwargs: Any) -> Any:
        for left in reversed(range(DEADLOCK_TRIES)):
            try:
                return verb(*args, **kwargs)
            except OperationalError as error:
                # Inside somebody else's transaction it is theirs to be done again.
                undone = getattr(error.__cause__, "sqlstate", None) in _DEADLOCKS
                if not undone or not left or connection.in_atomic_block:
                    raise
                time.sleep(random.uniform(0, 0.05))
        raise AssertionError("unreachable")

    return cast(Verb, again)


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


def upsert_rows(
    model: type[models.Model],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    key: Sequence[str],
    change: Sequence[str],
) -> None:
    """As ``insert_rows``; of a row whose ``key`` is there already, the columns of ``change`` are changed instead."""
    quote = connection.ops.quote_name
    names = ", ".join(quote(column) for column in columns)
    marks = ", ".join(["%s"] * len(columns))
    changes = ", ".join(f"{quote(column)} = excluded.{quote(column)}" for column in change)
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {quote(model._meta.db_table)} ({names}) VALUES ({marks}) "
            f"ON CONFLICT ({', '.join(map(quote, key))}) DO UPDATE SET {changes}",
            list(rows),
        )


def update_rows(
    model: type[models.Model],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    states: Sequence[str],
    added: Collection[str] = (),
) -> None:
    """Each row's own values, its id last, where it is still in one of ``states``; those of the columns ``added`` are
    added to what is there. ``bulk_update`` costs five times.
    """
    quote = connection.ops.quote_name
    names = ", ".join(
        f"{quote(column)} = {quote(column)} + %s" if column in added else f"{quote(column)} = %s" for column in columns
    )
    expected = ", ".join(["%s"] * len(states))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"UPDATE {quote(model._meta.db_table)} SET {names} WHERE id = %s AND state IN ({expected})",
            [(*row, *states) for row in rows],
        )


def set_rows(model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """As ``update_rows``, for columns that hold whatever the row's state is."""
    quote = connection.ops.quote_name
    names = ", ".join(f"{quote(column)} = %s" for column in columns)
    with connection.cursor() as cursor:
        cursor.executemany(f"UPDATE {quote(model._meta.db_table)} SET {names} WHERE id = %s", list(rows))


def moment(at: datetime) -> Any:
    """``at`` as the database driver takes it."""
    return connection.ops.adapt_datetimefield_value(at)
