"""The SQL that reads results back: the newest row per natural key, or every row, as somebody asks for them.

Every identifier in it has been looked up among the columns there are; every value goes through a placeholder. The
store runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodes.executors.base import Column, Reading, shown
from nodes.executors.rows import read
from nodes.protocol import FieldError


def quoted(name: str) -> str:
    """An identifier for SQL; the allow-list has been passed, and this stands should it ever be widened."""
    return '"' + name.replace('"', '""') + '"'


def newest(table: str, key: Sequence[str], condition: str = "") -> str:
    """SQL for the newest row per natural key; every row, where there is no key."""
    sql = f"SELECT * FROM {quoted(table + '_rows')} {condition}"
    if not key:
        return sql
    # rowid last: one allocation may have given the same key twice, and the answer must not change between two reads.
    return (
        f"{sql} QUALIFY row_number() OVER (PARTITION BY {', '.join(map(quoted, key))} "
        "ORDER BY _saved_at DESC, _allocation DESC, rowid DESC) = 1"
    )


def select(
    table: str,
    shape: Sequence[Column],
    key: Sequence[str],
    run: int | None,
    where: Mapping[str, Any],
    columns: Sequence[str] | None,
    order: Sequence[str],
    limit: int | None,
    offset: int,
    raw: bool,
    distinct: bool = False,
) -> tuple[str, list[Any]]:
    """SQL, and the values for its placeholders. Every identifier in it is one that ``shape`` has."""
    types = {column.name: column.type for column in shape}

    def known(name: Any, field: str) -> str:
        if not isinstance(name, str) or name not in types:
            raise FieldError(field, f"{shown(name)} is no column of {table}; there are: {', '.join(types)}")
        return quoted(name)

    chosen = ", ".join(known(name, "columns") for name in (types if columns is None else columns))
    if not chosen:
        raise FieldError("columns", "at least one is needed")
    values: list[Any] = []
    tests = []
    source = quoted(table + "_rows" if raw else table)
    if run is not None:
        values.append(_whole("run", run))
        if raw:
            tests.append("_run = ?")
        else:
            source = f"({newest(table, key, 'WHERE _run = ?')})"
    for name, value in where.items():
        column = known(name, "where")
        if value is None:
            tests.append(f"{column} IS NULL")
        else:
            tests.append(f"{column} = ?")
            values.append(_value(f"where.{name}", types[name], value))
    sql = f"SELECT {'DISTINCT ' if distinct else ''}{chosen} FROM {source}"
    if tests:
        sql += f" WHERE {' AND '.join(tests)}"
    paged = limit is not None or offset
    by = []
    for name in order or (key if paged and not distinct else ()):
        descending = isinstance(name, str) and name.startswith("-")
        by.append(known(name[1:], "order") + " DESC" if descending else known(name, "order"))
    if by:
        sql += f" ORDER BY {', '.join(by)}"
    if limit is not None:
        sql += " LIMIT ?"
        values.append(_whole("limit", limit))
    if offset:
        sql += " OFFSET ?"
        values.append(_whole("offset", offset))
    return sql, values


def asked(reading: Reading, shape: Sequence[Column], key: Sequence[str]) -> tuple[str, list[Any]]:
    """SQL for what an executor asked to read, and the values for its placeholders."""
    types = {column.name: column.type for column in shape}
    named = [*reading.columns, *reading.where, reading.column, *reading.order]
    for name in [*named, *([reading.time_column] if reading.time_column else [])]:
        if name not in types:
            raise FieldError("reads", f"{shown(name)} is no column of {reading.table}; there are: {', '.join(types)}")
    values: list[Any] = [list(reading.values)]
    tests = [f"{quoted(reading.column)} IN (SELECT unnest(?))"]
    for name, value in reading.where.items():
        tests.append(f"{quoted(name)} = ?")
        values.append(_value(f"reads.{name}", types[name], value))
    for end, operator in ((reading.since, ">="), (reading.until, "<")):
        if end is not None:
            tests.append(f"{quoted(reading.time_column)} {operator} ?")
            values.append(_value(f"reads.{reading.time_column}", types[reading.time_column], end))
    # Inside, where the rows are: of a symbol's bars the newest are looked for, not of the whole table's.
    source = newest(reading.table, key, f"WHERE {' AND '.join(tests)}")
    sql = f"SELECT {', '.join(map(quoted, reading.columns))} FROM ({source})"
    return sql + (f" ORDER BY {', '.join(map(quoted, reading.order))}" if reading.order else ""), values


def _whole(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise FieldError(field, f"{shown(value)} is not a whole number from 0 up")
    return value


def _truth(text: str) -> bool:
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]


_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {"int64": int, "float64": float, "bool": _truth}
"""Filters come from addresses, where everything is text."""


def _value(field: str, kind: str, value: Any) -> Any:
    """``value`` as a column of this kind holds it. Raises FieldError."""
    try:
        if isinstance(value, str) and kind in _FROM_TEXT:
            value = _FROM_TEXT[kind](value)
        return read("string" if kind == "json" else kind, value)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise FieldError(field, f"{shown(value)} is not a value of this column, which is {kind}") from None
