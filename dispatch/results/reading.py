"""The SQL that reads results back: the newest row per natural key, or every row, as somebody asks for them.

Every identifier in it has been looked up among the columns there are; every value goes through a placeholder. The
store runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dispatch.results import reading_filters as filters
from dispatch.results.reading_filters import quoted, valued
from nodes.executors.base import Column, Reading, shown
from nodes.protocol import FieldError

__all__ = ["asked", "matching", "newest", "quoted", "select"]


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
    source, tests, values = matching(table, types, key, run, where, raw)
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


def matching(
    table: str, types: Mapping[str, str], key: Sequence[str], run: int | None, where: Mapping[str, Any], raw: bool
) -> tuple[str, list[str], list[Any]]:
    """What to read from, the tests to be joined by AND, and the values for the placeholders of both.

    A view, and a table without a natural key, has no ``key``. Filters on columns of the key, and the run, are inside,
    where the rows are: then the newest rows are looked for among those, not in the whole table. Raises FieldError.
    """
    if raw or not key:
        source = quoted(f"{table}_rows" if raw or run is not None else table)
        of_run = ["_run = ?"] if run is not None else []
        tests, more = filters.tests(where, types, table)
        return source, of_run + tests, [*([] if run is None else [_whole("run", run)]), *more]
    inside = {name: value for name, value in where.items() if (found := filters.split(name, types)) and found[0] in key}
    first, values = filters.tests(inside, types, table)
    if run is not None:
        first, values = [*first, "_run = ?"], [*values, _whole("run", run)]
    outside = {name: value for name, value in where.items() if name not in inside}
    tests, more = filters.tests(outside, types, table)
    source = f"({newest(table, key, 'WHERE ' + ' AND '.join(first))})" if first else quoted(table)
    return source, tests, [*values, *more]


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
        values.append(valued(f"reads.{name}", types[name], value))
    for end, operator in ((reading.since, ">="), (reading.until, "<")):
        if end is not None:
            tests.append(f"{quoted(reading.time_column)} {operator} ?")
            values.append(valued(f"reads.{reading.time_column}", types[reading.time_column], end))
    # Inside, where the rows are: of a symbol's bars the newest are looked for, not of the whole table's.
    source = newest(reading.table, key, f"WHERE {' AND '.join(tests)}")
    sql = f"SELECT {', '.join(map(quoted, reading.columns))} FROM ({source})"
    return sql + (f" ORDER BY {', '.join(map(quoted, reading.order))}" if reading.order else ""), values


def _whole(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise FieldError(field, f"{shown(value)} is not a whole number from 0 up")
    return value
