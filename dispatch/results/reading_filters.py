"""Filters over columns: ``symbol`` (equal), ``close__gte``, ``title__contains``, … as SQL with placeholders.

A name is a column's, or a column's with ``__`` and one of OPERATORS. A column that is itself called ``a__lt`` wins.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodes.executors.base import shown
from nodes.executors.rows import read
from nodes.protocol import FieldError

OPERATORS = {
    "ne": "is another value, or null",
    "lt": "is less",
    "lte": "is less or equal",
    "gt": "is greater",
    "gte": "is greater or equal",
    "in": "is one of several: a,b,c; a value with a comma in double quotes",
    "contains": "text that has this in it, in small or capital letters",
    "startswith": "text that begins with this, letter by letter",
    "isnull": "true: has no value; false: has one",
}
MOST_VALUES = 1_000
"""In one ``in``."""
_COMPARED = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_TEXTS = ("string", "json")
_UNORDERED = ("bool", "json")


def quoted(name: str) -> str:
    """An identifier for SQL; the allow-list has been passed, and this stands should it ever be widened."""
    return '"' + name.replace('"', '""') + '"'


def split(name: str, columns: Mapping[str, Any]) -> tuple[str, str] | None:
    """The column and the operator that ``name`` says, "" for equal; None where it says no column of ``columns``."""
    if name in columns:
        return name, ""
    column, mark, operator = name.rpartition("__")
    return (column, operator) if mark and column in columns and operator in OPERATORS else None


def tests(where: Mapping[str, Any], types: Mapping[str, str], table: str) -> tuple[list[str], list[Any]]:
    """SQL of each filter, to be joined by AND, and the values for their placeholders. ``types``: column -> kind.

    Text is read as the column's kind. Raises FieldError on ``where`` for what is no column or operator, and on
    ``where.<name>`` for a value that cannot be.
    """
    made: list[str] = []
    values: list[Any] = []
    for name, value in where.items():
        found = split(name, types) if isinstance(name, str) else None
        if found is None:
            raise FieldError(
                "where",
                f"{shown(name)} is no column of {table}; there are: {', '.join(types)}; "
                f"each also with one of: {', '.join(f'__{each}' for each in OPERATORS)}",
            )
        sql, given = _test(f"where.{name}", *found, types[found[0]], value)
        made.append(sql)
        values += given
    return made, values


def _test(field: str, column: str, operator: str, kind: str, value: Any) -> tuple[str, list[Any]]:
    sql = quoted(column)
    if operator == "isnull":
        wanted = value if isinstance(value, bool) else _flag(field, value)
        return f"{sql} IS {'' if wanted else 'NOT '}NULL", []
    if value is None and operator in ("", "ne"):
        return f"{sql} IS {'NOT ' if operator else ''}NULL", []
    if operator == "":
        return f"{sql} = ?", [valued(field, kind, value)]
    if operator == "ne":
        return f"{sql} IS DISTINCT FROM ?", [valued(field, kind, value)]
    if operator in _COMPARED:
        if kind in _UNORDERED:
            raise FieldError(field, f"{column} is {kind}, which has no order")
        return f"{sql} {_COMPARED[operator]} ?", [valued(field, kind, value)]
    if operator == "in":
        several = [valued(field, kind, each) for each in _list(field, value)]
        return f"{sql} IN ({', '.join('?' * len(several))})", several
    if kind not in _TEXTS:
        raise FieldError(field, f"{column} is {kind}; only text contains text")
    text = valued(field, kind, value)
    if operator == "contains":
        return f"contains(lower({sql}), lower(?))", [text]
    return f"starts_with({sql}, ?)", [text]


def _list(field: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = next(csv.reader([value], strict=True), [])
        except csv.Error as error:
            raise FieldError(field, f"{shown(value)} is not like a,b,c: {error}") from None
    if not isinstance(value, list | tuple) or not value:
        raise FieldError(field, "names no value; a,b,c names three")
    if len(value) > MOST_VALUES:
        raise FieldError(field, f"names {len(value):,} values; at most {MOST_VALUES:,} are allowed")
    return list(value)


def _flag(field: str, value: Any) -> bool:
    try:
        return _truth(str(value))
    except KeyError:
        raise FieldError(field, f"{shown(value)} is neither true nor false") from None


def _truth(text: str) -> bool:
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]


_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {"int64": int, "float64": float, "bool": _truth}
"""Filters come from addresses, where everything is text."""


def valued(field: str, kind: str, value: Any) -> Any:
    """``value`` as a column of this kind holds it. Raises FieldError."""
    try:
        if isinstance(value, str) and kind in _FROM_TEXT:
            value = _FROM_TEXT[kind](value)
        found = read("string" if kind == "json" else kind, value)
        if found is None:
            raise ValueError("no number")
        return found
    except (TypeError, ValueError, KeyError, OverflowError):
        raise FieldError(field, f"{shown(value)} is not a value of this column, which is {kind}") from None


def filled(tests: Sequence[str], values: Sequence[Any]) -> list[str]:
    """``tests`` with their values in them, to be read by people."""
    left = iter(values)
    return ["".join(literal(next(left)) if part == "?" else part for part in re.split(r"(\?)", each)) for each in tests]


def literal(value: Any) -> str:
    """``value`` as somebody would write it in SQL: for texts that people go on with, never for what is run here."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if value - value == 0 else f"'{value}'::DOUBLE"
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"
