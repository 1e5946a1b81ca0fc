"""Where the items of a run come from when they are not given: active sources of a kind, or a column of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings

from dispatch.models import Source, Task
from nodes import executors, providers
from nodes.executors.base import Item, shown
from nodes.protocol import FieldError

FIELDS = ("source_kind", "items_column")


def items_of(task: Task) -> list[Item]:
    """What a run of ``task`` would go through now. Raises as ``items_from``."""
    given = {name: getattr(task, name) for name in FIELDS}
    return list(task.items) if task.items or not any(given.values()) else items_from(given)


def items_from(given: Mapping[str, str]) -> list[Item]:
    """The keys of all active sources of ``source_kind``, or the values of ``items_column``, like ``kline.symbol``.

    Raises FieldError where both are named or there is nothing, NotFound for an unknown table, Conflict in a process
    that does not hold the results.
    """
    check(given)
    if kind := given.get("source_kind"):
        if kind not in Source.Kind.values:
            raise FieldError("source_kind", f"{shown(kind)} is not one of: {', '.join(Source.Kind.values)}")
        found = list(Source.objects.filter(kind=kind, active=True).order_by("key").values_list("key", flat=True))
        if not found:
            raise FieldError("source_kind", f"there is no active source of kind {kind!r}")
        return list(found)
    return values_of(given.get("items_column", ""))


def check(given: Mapping[str, str]) -> None:
    """Raises FieldError for what could never name items."""
    if given.get("source_kind") and given.get("items_column"):
        raise FieldError("items_column", "stands beside source_kind: items come from one of them")
    if column := given.get("items_column"):
        parts(column)


def parts(text: str) -> tuple[str, str]:
    """Table and column. Raises FieldError."""
    table, dot, column = text.partition(".")
    if not dot or not table or not column or "." in column:
        raise FieldError("items_column", f"{shown(text)} is not TABLE.COLUMN, like kline.symbol")
    return table, column


def values_of(text: str) -> list[Item]:
    """Each value of the column once, in order."""
    from dispatch.results.saver import results

    table, column = parts(text)
    how: dict[str, Any] = {"columns": [column], "order": [column], "distinct": True}
    try:
        rows = results().select(table, **how, limit=settings.CASCADE.max_items + 1)
    except FieldError as error:
        raise FieldError("items_column", error.message) from None
    found = [value for batch in rows for value in batch.column(0).to_pylist() if value is not None and value != ""]
    return plain(text, found)


def symbols_of(
    task_type: str, params: Mapping[str, Any], field: str = "all", column: str = "items_column"
) -> list[Item]:
    """Every symbol that the source in ``params``, checked ones, can list. Raises FieldError on ``field``; ``column`` is
    what whoever asks calls the other way."""
    if not any(variant.by == "source" for variant in executors.get(task_type).variants()):
        raise FieldError(field, f"{task_type} has no source that lists its items")
    symbols = providers.get(params["source"])(params).symbols()
    if not symbols:
        hint = f"; {column} kline.symbol can" if params["source"] == "store" else ""
        raise FieldError(field, f"source {params['source']!r} cannot list its symbols{hint}")
    return list(symbols)


def plain(text: str, values: list[Any]) -> list[Item]:
    """``values`` as items. Raises FieldError where they cannot be, or are none."""
    if not values:
        raise FieldError("items_column", f"{shown(text)} has no values")
    if not isinstance(values[0], str | int | float) or isinstance(values[0], bool):
        raise FieldError("items_column", f"{shown(text)} holds {type(values[0]).__name__}, which cannot be an item")
    return list(values)
