"""Calls a function that the operator of this node allows, by name, once for each item.

Off unless the setting ``custom`` names something, on the parent that takes the run and on the node that runs it:
``NAME=package.module:callable``, or ``NAME`` alone for the entry point of that name in the group ``cascade.custom``. An
installed package offers names; it allows nothing. This is no sandbox: what is called may do what its process may.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from operator import attrgetter
from typing import Any

from nodes import surroundings
from nodes.executors.base import (
    Column,
    Dataset,
    Executor,
    Item,
    ItemFailed,
    Param,
    Rows,
    check_params,
    item_key,
    shown,
)
from nodes.protocol import FieldError

GROUP = "cascade.custom"
ROWS_LIMIT = 100_000
"""Rows of one item; what has more belongs into a type of its own."""


class Custom(Executor):
    """``callable(item, **arguments)`` gives None, a value of plain JSON, or a list of them: a row each, from 0.

    A row's ``item`` is the item's text or ``key``; of an object without one, all of it.
    """

    type = "custom"
    title = "Calls a function of yours that the setting custom allows"
    params = (
        Param("callable", "string", help="Its name, as the setting custom has it here and on the nodes."),
        Param("arguments", "object", None, 'Passed to it by name with each item, such as {"year": 2024}.'),
    )
    dataset = Dataset(
        table="custom",
        columns=(
            Column("callable", "string"),
            Column("item", "string"),
            Column("number", "int64"),
            Column("data", "json"),
        ),
        key=("callable", "item", "number"),
    )

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        return _allowed(check_params(cls.params, params))

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return _allowed(check_params(cls.params, settings, partial=True))

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.name: str = params["callable"]
        self.arguments: dict[str, Any] = params.get("arguments") or {}

    def run(self, item: Item) -> Rows:
        # Here, not when the run was checked: that was on another machine, with a list of its own.
        path = surroundings.current().custom.get(self.name)
        if path is None:
            raise ItemFailed(f"{self.name!r} is not in this node's setting custom", retry=True)
        brought = _loaded(self.name, path)(item, **self.arguments)
        if brought is None:
            return None
        values = brought if isinstance(brought, list | tuple) else [brought]
        if len(values) > ROWS_LIMIT:
            raise ItemFailed(f"{self.name} returned {len(values):,} rows; at most {ROWS_LIMIT:,} are allowed")
        key = _text(item)
        return [(self.name, key, number, self._json(value)) for number, value in enumerate(values)]

    def _json(self, value: Any) -> str:
        try:
            return json.dumps(value, allow_nan=False, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise ItemFailed(f"{self.name} returned {shown(value)}, which is not plain JSON: {error}") from None


def _allowed(checked: dict[str, Any]) -> dict[str, Any]:
    """Raises FieldError for a callable that is not on the list; imports nothing, since this runs in the parent."""
    name = checked.get("callable")
    allowed = surroundings.current().custom
    if name is not None and name not in allowed:
        known = ", ".join(sorted(allowed)) or "nothing; it is a list of NAME=package.module:callable"
        raise FieldError("params.callable", f"{shown(name)} is not allowed here; the setting custom allows: {known}")
    return checked


@cache
def _loaded(name: str, path: str) -> Callable[..., Any]:
    """Raises ItemFailed where this node does not have it; another may."""
    try:
        found: Callable[..., Any] = _by_path(path) if path else _by_entry_point(name)
    except ItemFailed:
        raise
    except Exception as error:  # somebody's module, which may fail in any way when it is imported
        told = f"{type(error).__name__}: {error}"
        raise ItemFailed(f"{name} ({path or GROUP}) cannot be loaded: {told}", retry=True) from error
    if not callable(found):
        raise ItemFailed(f"{name} ({path or GROUP}) is {shown(found)}, which cannot be called")
    return found


def _by_path(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return attrgetter(attribute)(import_module(module))


def _by_entry_point(name: str) -> Any:
    from importlib.metadata import entry_points  # megabytes, in agents too

    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not points:
        raise ItemFailed(f"no package on this node offers {name!r} as an entry point in {GROUP}", retry=True)
    if len(points) > 1:
        # Which one comes first depends on the order of folders: nobody has allowed that one.
        raise ItemFailed(f"{name!r} is offered by several packages: {', '.join(sorted(points))}; allow one by its path")
    return next(iter(points.values())).load()


def _text(item: Item) -> str:
    if isinstance(item, dict) and "key" not in item:
        return json.dumps(item, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return item_key(item)


def _plain(value: Any) -> Any:
    """Dates in ISO 8601; numpy's numbers as Python's. Raises TypeError for anything else."""
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
