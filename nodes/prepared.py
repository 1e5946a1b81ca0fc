"""Queries that are put so often that making their text costs more than their answer: it is made once, by the ORM.

    LIVE = Prepared(lambda: Allocation.objects.filter(run_id__among=Given("runs")).values_list("pk", "node_id"))
    LIVE.rows(runs=[1, 2])

What differs from one time to the next is ``Given``; lists of it are compared with the lookup ``among``. All else of the
query, ``LIMIT`` as well, is part of the text. Values are passed to the driver: times as they are, nothing is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from django.db import connection, models
from django.db.models import Expression, Field, Lookup, QuerySet
from django.db.models.sql import UpdateQuery
from django.db.models.sql.compiler import SQLCompiler

Row = TypeVar("Row", bound=models.Model)


class Given(Expression):
    """A value that is named when the query is put. ``field`` is needed where it is counted with."""

    def __init__(self, name: str, field: Field[Any, Any] | None = None) -> None:
        super().__init__(output_field=field)
        self.name = name

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> Any:
        return "%s", [self]


class Among(Lookup):
    """``column__among=Given("ids")``: any of a list, as one parameter however long it is."""

    lookup_name = "among"
    prepare_rhs = False

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> Any:
        column, params = self.process_lhs(compiler, connection)
        if connection.vendor == "sqlite":
            return f"{column} IN (SELECT value FROM json_each(%s))", [*params, self.rhs]
        return f"{column} = ANY(%s)", [*params, self.rhs]


for _kind in (Field, models.ForeignObject):  # relations do not take over the lookups of fields
    _kind.register_lookup(Among)

Converter = tuple[int, Sequence[Callable[..., Any]], Any]


class Text(NamedTuple):
    """``names``: of the model's fields that the columns are, where whole objects are asked for."""

    sql: str
    params: tuple[Any, ...]
    converters: Sequence[Converter] = ()
    names: Sequence[str] = ()
    model: Any = None

    def bound(self, given: dict[str, Any]) -> list[Any]:
        return [_adapted(given[each.name]) if isinstance(each, Given) else each for each in self.params]


class _Made:
    """A text for each kind of database that is used."""

    def __init__(self) -> None:
        self._texts: dict[str, Text] = {}

    def text(self) -> Text:
        if (text := self._texts.get(connection.vendor)) is None:
            text = self._texts[connection.vendor] = self._make()
        return text

    def _make(self) -> Text:
        raise NotImplementedError


class Prepared(_Made, Generic[Row]):
    """A query for rows (``values_list``) or for objects, put as often as wanted, from any thread."""

    def __init__(self, make: Callable[[], QuerySet[Row, Any]]) -> None:
        super().__init__()
        self._queryset = make

    def _make(self) -> Text:
        queryset = self._queryset()
        compiler = queryset.query.get_compiler(connection=connection)
        sql, params = compiler.as_sql()
        columns = [column for column, *_ in compiler.select]
        converters = [(at, found, column) for at, (found, column) in compiler.get_converters(columns).items()]
        names = [column.target.attname for column in columns] if queryset.query.default_cols else []
        return Text(sql, _plain(params), converters, names, queryset.model)

    def rows(self, **given: Any) -> list[tuple[Any, ...]]:
        """All of them."""
        text = self.text()
        with connection.cursor() as cursor:
            cursor.execute(text.sql, text.bound(given))
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return [_converted(row, text.converters) for row in rows] if text.converters else rows

    def any(self, **given: Any) -> bool:
        """Whether there is one."""
        return bool(self.rows(**given))

    def objects(self, **given: Any) -> list[Row]:
        """The rows as the model's objects."""
        text = self.text()
        return [text.model.from_db(connection.alias, text.names, row) for row in self.rows(**given)]


class Change(_Made):
    """An update: ``Change(lambda: Node.objects.filter(pk=Given("node")), seen=Given("now"))``."""

    def __init__(self, make: Callable[[], QuerySet[Any]], **values: Any) -> None:
        super().__init__()
        self._queryset = make
        self._values = values

    def _make(self) -> Text:
        query: Any = self._queryset().query.chain(UpdateQuery)
        query.add_update_values(self._values)
        sql, params = query.get_compiler(connection=connection).as_sql()
        return Text(sql, _plain(params))

    def run(self, **given: Any) -> int:
        """How many rows were changed."""
        text = self.text()
        with connection.cursor() as cursor:
            cursor.execute(text.sql, text.bound(given))
            return int(cursor.rowcount)


def _plain(params: Sequence[Any]) -> tuple[Any, ...]:
    """Members of enumerations as the texts that they are, which every driver takes."""
    return tuple(str(each) if isinstance(each, str) else each for each in params)


def _adapted(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return json.dumps(list(value)) if connection.vendor == "sqlite" else list(value)
    return value


def _converted(row: Sequence[Any], converters: Sequence[Converter]) -> tuple[Any, ...]:
    made = list(row)
    for at, functions, column in converters:
        for convert in functions:
            made[at] = convert(made[at], column, connection)
    return tuple(made)
