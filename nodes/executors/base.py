"""What an executor is: its parameters, its dataset, and the work on one item.

Django-free and light to import: agents load this at start. An executor imports pandas, pyarrow or
a network library inside the function that needs it, because that function runs in a worker process.
"""

from __future__ import annotations

import datetime as dt
import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from nodes.protocol import FieldError

Item = str | int | float | dict[str, Any]
"""One unit of a run's input: a text, a number, or a flat object such as ``{"symbol": "AAPL"}``."""

Rows = Any
"""A list of tuples in the dataset's column order, a pandas DataFrame or a pyarrow Table with the dataset's columns,
or None for no rows."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()


class ItemFailed(Exception):
    """This item cannot be done; the other items of the shard go on.

    ``retry`` says whether another attempt could end differently (a time-out, say) or not (an unknown
    symbol). Any other exception out of ``Executor.run`` counts as one that could.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


@dataclass(frozen=True)
class Outcome:
    """What one item brought where that is more than rows. All of it counts once, when the shard's report is accepted.

    ``found``: further items of the same run, for types that grow; the parent drops those that the run has already.
    ``memory``: what the next run of this item shall know, plain JSON of MEMORY_LIMIT characters at most; None: as it
    was.
    ``status``: how it went, in a word or a line, and ``counts`` in numbers; both are kept with the memory.
    """

    rows: Rows = None
    found: Sequence[Item] = ()
    memory: Mapping[str, Any] | None = None
    status: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


MEMORY_LIMIT = 32_000
FOUND_LIMIT = 2_000
"""Items that one item may find."""


@dataclass(frozen=True)
class Pace:
    """How fast the items of a run that share a key may be run, by all nodes together: ``per_second``, in ``lanes``
    shards at a time. ``template`` makes the key (``dispatch.rates``): host:{host}.

    The parent gives out no shard more, and none within ``spacing`` seconds after the end of the one whose lane it
    takes; the executor leaves ``spacing`` seconds between the items of its shard. So in any t seconds at most lanes +
    per_second * t items of a key begin, however long messages take.
    """

    template: str
    per_second: float
    lanes: int = 1

    @property
    def spacing(self) -> float:
        return self.lanes / self.per_second


@dataclass(frozen=True)
class Column:
    """One column: ``type`` is one of string, int64, float64, bool, timestamp (naive, microseconds), json (as text)."""

    name: str
    type: str


@dataclass(frozen=True)
class Dataset:
    """The table an executor's rows go to; ``key`` names the columns that identify a fact (the natural key).

    ``views``: further names to read it by, each with its SELECT; ``{table}`` in it is the table's newest rows. For what
    hangs on a row as JSON, such as the trades of a backtest.
    """

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    views: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True)
class Reading:
    """Rows of ``table`` whose columns equal ``where`` and whose ``column`` is one of ``values``, with ``since`` <=
    ``time_column`` < ``until`` (ISO 8601, None: open), in the order of ``order``."""

    table: str
    columns: tuple[str, ...]
    where: Mapping[str, Any]
    column: str
    values: tuple[Any, ...]
    order: tuple[str, ...] = ()
    time_column: str = ""
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Param:
    """One declared parameter: from this come validation, command-line help and the API's schema.

    ``kind`` is one of string, integer, number, boolean, date (ISO 8601 text), object, list. Of a list, ``of`` is the
    kind of each element, and choices and bounds are about the elements.
    """

    name: str
    kind: str
    default: Any = REQUIRED
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    of: str | None = None

    def check(self, value: Any) -> Any:
        """``value`` as this parameter's kind.

        Text is read as the kind, as the command line sends it: an object as JSON, a list as JSON or ``a,b``.

        Raises FieldError naming ``params.<name>``, the value and what is allowed.
        """
        field = f"params.{self.name}"
        try:
            value = _READERS[self.kind](value)
        # OverflowError: a whole number too large for a float. RecursionError: nested beyond any use.
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise FieldError(field, f"{shown(value)} is not {_ALLOWED[self.kind]}") from None
        if self.kind == "list":
            element = replace(self, kind=self.of, of=None) if self.of else None
            return [element.check(each) for each in value] if element else value
        if self.choices is not None and value not in self.choices:
            allowed = ", ".join(str(choice) for choice in self.choices)
            raise FieldError(field, f"{shown(value)} is not one of: {allowed}")
        if self.minimum is not None and value < self.minimum:
            raise FieldError(field, f"{shown(value)} is below the least allowed, {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise FieldError(field, f"{shown(value)} is above the most allowed, {self.maximum}")
        return value


@dataclass(frozen=True)
class Variant:
    """Parameters that there are only where the parameter ``by`` says ``value``: beside it, or in the object ``within``.

    ``choices``: what other parameters may be there, by name.
    """

    by: str
    value: str
    params: tuple[Param, ...]
    within: str = ""
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def shown(value: Any) -> str:
    """``value`` as a message shows it: printable, and short however long or deep it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def item_key(item: Item) -> str:
    """What quotas and messages call an item: its text, or its ``key`` or ``symbol``, or its first value."""
    if isinstance(item, dict):
        for name in ("key", "symbol"):
            if name in item:
                return str(item[name])
        return str(next(iter(item.values()), ""))
    return str(item)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "1", "on"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "no", "0", "off"):
        return False
    raise ValueError


def _string(value: Any) -> str:
    # NUL and lone surrogates can come in by JSON and databases refuse them; encode() raises for the latter.
    if not isinstance(value, str) or b"\x00" in value.encode():
        raise ValueError
    return value


def _date(value: Any) -> str:
    return dt.date.fromisoformat(value).isoformat()


def _of(kind: type) -> Any:
    def read(value: Any) -> Any:
        if isinstance(value, str):
            listed = kind is list and not value.lstrip().startswith("[")
            value = value.split(",") if listed else json.loads(value)
        if not isinstance(value, kind):
            raise ValueError
        # Raises for NaN, which PostgreSQL's JSON lacks, and in encode() for lone surrogates; it lacks NUL as well.
        if b"\\u0000" in json.dumps(value, ensure_ascii=False, allow_nan=False).encode():
            raise ValueError
        return value

    return read


_READERS: Mapping[str, Any] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "date": _date,
    "object": _of(dict),
    "list": _of(list),
}
_ALLOWED = {
    "string": "a text (without NUL or lone surrogates)",
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "date": "a date like 2024-01-31",
    "object": "an object of plain JSON values",
    "list": "a list of plain JSON values",
}


def check_params(declared: Sequence[Param], given: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """``given`` checked against ``declared``, with defaults filled in or, if ``partial``, only what is given.

    Raises FieldError for an unknown name, a missing required one, or a bad value.
    """
    if not isinstance(given, Mapping):
        raise FieldError("params", f"{shown(given)} is not an object")
    known = {param.name: param for param in declared}
    for name in given:
        if name not in known:
            field = f"params.{name}" if str(name).isprintable() and len(str(name)) <= 60 else "params"
            allowed = ", ".join(sorted(known)) or "none"
            raise FieldError(field, f"{shown(name)} is not a parameter; known are: {allowed}")
    checked: dict[str, Any] = {}
    for name, param in known.items():
        # null means "not given", as JSON clients that fill in every key send it.
        if given.get(name) is not None:
            checked[name] = param.check(given[name])
        elif partial:
            continue
        elif param.default is REQUIRED:
            raise FieldError(f"params.{name}", f"is required: {param.help or param.kind}")
        elif param.default is not None:
            checked[name] = param.default
    return checked


class Executor(ABC):
    """The code for one task type. One instance runs one shard, item by item, in a worker process."""

    type: ClassVar[str]
    """The task type, as users write it."""
    title: ClassVar[str]
    """One line for lists."""
    params: ClassVar[tuple[Param, ...]] = ()
    item_form: ClassVar[str] = "A text, a number, or an object of plain values."
    """What its items look like, for people; ``check_item`` decides."""
    dataset: ClassVar[Dataset]
    waits: ClassVar[bool] = False
    """It waits, for a network mostly: its shards run as threads, many at once in one worker process. Others compute:
    each of their shards has a process of its own."""
    remembers: ClassVar[bool] = False
    """Its items have a memory (``Outcome.memory``), which comes with them wherever they are run next."""
    grows: ClassVar[bool] = False
    """Its items may find further ones (``Outcome.found``)."""
    items_optional: ClassVar[bool] = False
    """A run may be submitted without items: ``begin`` makes them of the params."""
    source_kind: ClassVar[str] = ""
    """Kind of the sources that an item may name by key; ``resolve`` gives it what the source says."""
    reductions: ClassVar[Mapping[str, str]] = {}
    """What is computed of a run's rows when it has ended: name -> SELECT over ``rows``, the run's newest by key."""

    memory: Mapping[str, Mapping[str, Any]] = {}
    """By item_key, what the items of this shard remember; set before the first ``run``."""
    input: str = ""
    """File with the rows that ``reads`` asked for (Arrow IPC); set before the first ``run``."""
    run_id: int = 0
    """The run of this shard, 0 where there is none: what was read for it may be kept for its other shards."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.given = params

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """The checked parameters; overridden where one parameter decides which others exist. Raises FieldError."""
        return check_params(cls.params, params)

    @classmethod
    def variants(cls) -> Sequence[Variant]:
        """What further parameters ``check`` knows, by the value of one of them; for help and schemas."""
        return ()

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The checked parameters that all runs of this type shall have unless they say otherwise: any part of them."""
        return check_params(cls.params, settings, partial=True)

    @classmethod
    def merged(cls, settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """``params`` of a run over the type's ``settings``, as far as these hold for it."""
        return {**settings, **params}

    @classmethod
    def check_item(cls, item: Item) -> None:
        """Raises ValueError, saying what an item of this type looks like, for one that never can be run."""

    @classmethod
    def expand(cls, items: Sequence[Item], params: Mapping[str, Any], split: str) -> list[Item]:
        """``items`` cut finer as ``split`` names it. Raises FieldError where this type knows no such split."""
        raise FieldError("split", f"{split!r}: {cls.type} items cannot be split")

    @classmethod
    def begin(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[Item]:
        """The items that a run of ``items`` begins with, by checked params; called on submission. Raises FieldError."""
        return list(items)

    @classmethod
    def resolve(cls, item: Item, address: str, name: str) -> Item:
        """``item``, which is the key of a source of ``source_kind``, with that source's address and name."""
        return item

    @classmethod
    def outside(cls, items: Sequence[Item], params: Mapping[str, Any]) -> bool:
        """Whether only clients with code of their own can run these items."""
        return False

    @classmethod
    def most_items(cls, params: Mapping[str, Any]) -> int | None:
        """So many items a run that grows may have; what is found beyond is dropped."""
        return None

    @classmethod
    def pace(cls, params: Mapping[str, Any]) -> Pace | None:
        """How fast a run's items may be run, where the run itself says so; its ``rate_key`` is of that template, unless
        it names another with the same places. Rate limits that operators set for the key hold as well."""
        return None

    @classmethod
    def expected(cls, items: Sequence[Item], params: Mapping[str, Any]) -> int | None:
        """How many items the run will have in the end, where the parent itself adds to them as it goes
        (``dispatch.advising``); None: these are all."""
        return None

    @classmethod
    def reads(cls, items: Sequence[Item], params: Mapping[str, Any]) -> Reading | None:
        """What of the parent's tables a shard of these items needs; it is in the file ``input`` then."""
        return None

    @abstractmethod
    def run(self, item: Item) -> Rows | Outcome:
        """The rows of one item, or an Outcome. Raises ItemFailed; prints and log records go to the shard's log."""
