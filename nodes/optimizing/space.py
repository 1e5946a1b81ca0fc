"""What may vary: for each parameter a range or a list of values, read from params and checked against its declaration.

    {"fast": {"low": 5, "high": 50, "step": 5}, "slow": [50, 100, 200], "x": {"low": 0.001, "high": 1, "log": true}}

Every value of a dimension has a place: a number from 0 in its list or on its steps. Ranges of numbers without a step
have none, and so no end of values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

from nodes.executors.base import Param, shown
from nodes.protocol import FieldError

FIELD = "params.space"
MOST_DIMENSIONS = 20
MOST_VALUES = 1_000
"""In one list."""
NAME_LENGTH = 60
_WAYS = 'give a range such as {"low": 5, "high": 50, "step": 5}, or a list of values'


@dataclass(frozen=True)
class Listed:
    """One of ``values``, in no order."""

    name: str
    values: tuple[Any, ...]

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, place: int) -> Any:
        return self.values[place]

    def place(self, value: Any) -> int:
        """Raises ValueError for one that is not here."""
        for place, known in enumerate(self.values):
            if known == value and isinstance(known, bool) == isinstance(value, bool):
                return place
        raise ValueError(value)

    def draw(self, random: Random) -> Any:
        return self.values[random.randrange(len(self.values))]


@dataclass(frozen=True)
class Stepped:
    """``low``, ``low + step`` and so on, up to ``high``; with ``log`` (whole numbers) small ones come more often."""

    name: str
    low: int | float
    high: int | float
    step: int | float
    log: bool = False

    @property
    def size(self) -> int:
        return int((_exact(self.high) - _exact(self.low)) // _exact(self.step)) + 1

    def at(self, place: int) -> int | float:
        if isinstance(self.low, int) and isinstance(self.step, int):
            return self.low + place * self.step
        # In decimals, as people count: 0.1 + 2 * 0.1 is 0.3 here.
        return float(_exact(self.low) + place * _exact(self.step))

    def place(self, value: Any) -> int:
        """Raises ValueError for one that is on no step."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(value)
        place = round((float(value) - float(self.low)) / float(self.step))
        if not 0 <= place < self.size or self.at(place) != value:
            raise ValueError(value)
        return place

    def draw(self, random: Random) -> int | float:
        if not self.log:
            return self.at(random.randrange(self.size))
        drawn = math.exp(_between(random, math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return min(max(round(drawn), int(self.low)), int(self.high))


@dataclass(frozen=True)
class Continuous:
    """Any number from ``low`` to ``high``."""

    name: str
    low: float
    high: float
    log: bool = False

    def draw(self, random: Random) -> float:
        if self.log:
            drawn = math.exp(_between(random, math.log(self.low), math.log(self.high)))
        else:
            drawn = _between(random, self.low, self.high)
        return min(max(drawn, self.low), self.high)


Dimension = Listed | Stepped | Continuous


@dataclass(frozen=True)
class Space:
    """All combinations of the values of ``dimensions``."""

    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def size(self) -> int | None:
        """How many combinations; None: without end."""
        size = 1
        for dimension in self.dimensions:
            if isinstance(dimension, Continuous):
                return None
            size *= dimension.size
        return size

    def at(self, number: int) -> dict[str, Any]:
        """Combination ``number`` of ``size``: the last dimension goes through its values first."""
        params: dict[str, Any] = {}
        for dimension in reversed(self.dimensions):
            assert not isinstance(dimension, Continuous)
            number, place = divmod(number, dimension.size)
            params[dimension.name] = dimension.at(place)
        return {name: params[name] for name in self.names}

    def draw(self, random: Random) -> dict[str, Any]:
        return {dimension.name: dimension.draw(random) for dimension in self.dimensions}


def read(given: Mapping[str, Any], declared: Sequence[Param] | None, of: str) -> Space:
    """``given`` as a Space over parameters of strategy ``of``; ``declared`` None: nothing is known about them.

    Raises FieldError on ``params.space`` or on what is wrong inside of it.
    """
    if not given:
        raise FieldError(FIELD, f"is empty: name at least one parameter of {of} to search over")
    if len(given) > MOST_DIMENSIONS:
        raise FieldError(FIELD, f"has {len(given)} parameters; at most {MOST_DIMENSIONS} are allowed")
    known = None if declared is None else {param.name: param for param in declared}
    dimensions = []
    # By name: databases keep the members of an object in orders of their own.
    for name, spec in sorted(given.items()):
        if not name or len(name) > NAME_LENGTH or not name.isprintable():
            raise FieldError(FIELD, f"{shown(name)} is not the name of a parameter")
        if known is not None and name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise FieldError(f"{FIELD}.{name}", f"{shown(name)} is not a parameter of {of}; known are: {names}")
        dimensions.append(_dimension(name, spec, None if known is None else known[name]))
    return Space(tuple(dimensions))


def plain(space: Space) -> dict[str, Any]:
    """``space`` as ``read`` takes it."""
    specs: dict[str, Any] = {}
    for dimension in space.dimensions:
        if isinstance(dimension, Listed):
            specs[dimension.name] = list(dimension.values)
            continue
        spec: dict[str, Any] = {"low": dimension.low, "high": dimension.high}
        if isinstance(dimension, Stepped) and not dimension.log:
            spec["step"] = dimension.step
        if dimension.log:
            spec["log"] = True
        specs[dimension.name] = spec
    return specs


def _dimension(name: str, spec: Any, param: Param | None) -> Dimension:
    field = f"{FIELD}.{name}"
    if isinstance(spec, list):
        return _listed(name, spec, param, field)
    if isinstance(spec, dict):
        return _range(name, spec, param, field)
    raise FieldError(field, f"{shown(spec)}: {_WAYS} (what does not vary goes into strategy_params)")


def _listed(name: str, spec: list[Any], param: Param | None, field: str) -> Listed:
    if not 0 < len(spec) <= MOST_VALUES:
        raise FieldError(field, f"has {len(spec)} values; 1 to {MOST_VALUES} are allowed")
    values: list[Any] = []
    for number, value in enumerate(spec):
        if value is None or isinstance(value, list | dict):
            raise FieldError(f"{field}[{number}]", f"{shown(value)} is not a text, a number, true or false")
        value = _checked(value, param, f"{field}[{number}]")
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values):
            raise FieldError(f"{field}[{number}]", f"{shown(value)} is there twice")
        values.append(value)
    return Listed(name, tuple(values))


def _range(name: str, spec: Mapping[str, Any], param: Param | None, field: str) -> Dimension:
    for key in spec:
        if key not in ("low", "high", "step", "log"):
            raise FieldError(field, f"{shown(key)} is not one of: low, high, step, log")
    if param is not None and param.kind not in ("integer", "number"):
        raise FieldError(field, f"is a {param.kind}, which has no range: give a list of values")
    ends = []
    for key in ("low", "high"):
        if key not in spec:
            raise FieldError(f"{field}.{key}", f"is required: {_WAYS}")
        ends.append(_number(spec[key], param, f"{field}.{key}"))
    low, high = ends
    if low > high:
        raise FieldError(f"{field}.high", f"{shown(high)} is below low, {shown(low)}")
    log = spec.get("log", False)
    if not isinstance(log, bool):
        raise FieldError(f"{field}.log", f"{shown(log)} is not true or false")
    if log and low <= 0:
        raise FieldError(f"{field}.low", f"{shown(low)} must be above 0 where log is true")
    step = spec.get("step")
    whole = param.kind == "integer" if param is not None else all(isinstance(each, int) for each in (low, high))
    if step is not None:
        if log:
            raise FieldError(f"{field}.step", "says nothing where log is true: leave one of them out")
        step = _step(step, low, high, whole and param is not None, f"{field}.step")
        if isinstance(step, float):
            low, high = float(low), float(high)
        return Stepped(name, low, high, step)
    if whole:
        return Stepped(name, low, high, 1, log)
    return Continuous(name, float(low), float(high), log)


def _step(value: Any, low: float, high: float, whole: bool, field: str) -> int | float:
    step = _number(value, Param("step", "integer" if whole else "number"), field)
    if step <= 0:
        raise FieldError(field, f"{shown(step)} is not above 0")
    if (high - low) / step > 1e12:
        raise FieldError(field, f"{shown(step)} is too small for a range from {shown(low)} to {shown(high)}")
    if not whole and isinstance(value, int):
        return value if isinstance(low, int) and isinstance(high, int) else float(value)
    return step


def _number(value: Any, param: Param | None, field: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(field, f"{shown(value)} is not a number")
    if param is None:
        param = Param("value", "integer" if isinstance(value, int) else "number")
    number: int | float = _checked(value, param, field)
    if abs(number) > 1e15:
        raise FieldError(field, f"{shown(number)} is not between -1e15 and 1e15")
    return number


def _checked(value: Any, param: Param | None, field: str) -> Any:
    if param is None:
        return value
    try:
        return param.check(value)
    except FieldError as error:
        raise FieldError(field, error.message) from None


def _exact(value: float) -> Decimal:
    return Decimal(repr(value))


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random()
