"""Which trials a run has: all of a grid, some drawn at random, or the first ones of a search that learns (``advice``).

    search = Search.of(checked_params)
    search.first()      # params of trials 0, 1, …, that need no result of another
    search.total()      # trials in the end

The same params, seed among them, give the same trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from random import Random
from typing import Any

from nodes import backtesting
from nodes.backtesting import Strategy
from nodes.executors.base import Item, shown
from nodes.optimizing import space as spaces
from nodes.optimizing.space import FIELD, Space
from nodes.protocol import FieldError

METHODS = ("grid", "random", "tpe")
MOST_TRIALS = 100_000
MOST_ADVISED = 5_000
"""Of a search that learns: what it thinks over grows with its trials."""
DEFAULT_TRIALS = 100
REPEATS = 100
"""So often in a row a draw may be known already before the rest is gone through one by one."""
PATIENCE = 10_000
"""So often in a row a draw may come to nothing where the rest cannot be gone through."""


@dataclass(frozen=True)
class Search:
    """A space and how it is gone through. ``fixed``: the strategy's params that do not vary."""

    strategy: Strategy
    space: Space
    method: str
    seed: int = 0
    trials: int | None = None
    parallel: int = 16
    maximize: bool = True
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Search:
        """By params of the type ``optimization`` whose kinds have been checked. Raises FieldError."""
        strategy = backtesting.strategy(params["strategy"])
        fixed = params["strategy_params"]
        space = spaces.read(params["space"], strategy.declared, strategy.name)
        _check_fixed(fixed, strategy, space)
        search = cls(
            strategy=strategy,
            space=space,
            method=params["search"],
            seed=params["seed"],
            trials=params.get("trials"),
            parallel=params["parallel"],
            maximize=params["direction"] == "maximize",
            fixed=fixed,
        )
        search._check()
        return search

    def _check(self) -> None:
        size = self.space.size
        if self.method == "grid":
            for dimension in self.space.dimensions:
                if isinstance(dimension, spaces.Continuous):
                    raise FieldError(f"{FIELD}.{dimension.name}.step", "is required in a grid: the range has no end")
                if isinstance(dimension, spaces.Stepped) and dimension.log:
                    raise FieldError(f"{FIELD}.{dimension.name}.log", "says nothing in a grid: give a list of values")
            most = min(MOST_TRIALS, self.trials or MOST_TRIALS)
            if size is not None and size > most:
                raise FieldError(
                    FIELD,
                    f"has {size:,} combinations, at most {most:,} are allowed: "
                    "take larger steps, or search at random or by tpe",
                )
        elif self.method == "tpe" and (self.trials or 0) > MOST_ADVISED:
            raise FieldError("params.trials", f"{self.trials} is above the most allowed of tpe, {MOST_ADVISED}")
        if next(self._allowed(), None) is None:
            raise FieldError(FIELD, f"none of its combinations is allowed: {self._refusal()}")

    def merged(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All params of the strategy in a trial with ``params``. Raises FieldError on ``params.space``."""
        return self.strategy.check({**self.fixed, **params}, FIELD)

    def allows(self, params: Mapping[str, Any]) -> bool:
        """Whether the strategy takes them together: ma_cross wants fast below slow."""
        try:
            self.merged(params)
        except FieldError:
            return False
        return True

    def total(self) -> int:
        """How many trials there will be; fewer than asked for where there are no more combinations."""
        return len(self.drawn)

    def first(self) -> Sequence[dict[str, Any]]:
        """Params of the trials to begin with: all, or for a search that learns as many as may be under way."""
        return self.drawn[: self.parallel] if self.method == "tpe" else self.drawn

    @cached_property
    def drawn(self) -> Sequence[dict[str, Any]]:
        """The trials as far as no result decides on them, each once. Of ``tpe`` only the first come to be, and those
        that take the place of what it would repeat."""
        if self.method == "grid":
            return list(self._allowed())
        return list(islice(self._allowed(), self.trials or DEFAULT_TRIALS))

    def _allowed(self) -> Iterator[dict[str, Any]]:
        order = self._in_order() if self.method == "grid" else self._at_random()
        return (params for params in order if self.allows(params))

    def _in_order(self) -> Iterator[dict[str, Any]]:
        return (self.space.at(number) for number in range(self.space.size or 0))

    def _at_random(self) -> Iterator[dict[str, Any]]:
        """Draws without repetition; where few are left, all of them."""
        random = Random(self.seed)
        size = self.space.size
        small = size is not None and size <= MOST_TRIALS
        seen: set[tuple[Any, ...]] = set()
        vain = 0
        while vain < (REPEATS if small else PATIENCE):
            params = self.space.draw(random)
            vain += 1
            if known_by(params) in seen:
                continue
            seen.add(known_by(params))
            if small or self.allows(params):
                vain = 0
            yield params
        left = [params for params in self._in_order() if known_by(params) not in seen] if small else []
        while left:
            yield left.pop(random.randrange(len(left)))

    def _refusal(self) -> str:
        order = self._in_order() if self.space.size is not None else self._at_random()
        for params in order:
            try:
                self.merged(params)
            except FieldError as error:
                return str(error)
        return "there is none"


def _check_fixed(fixed: Mapping[str, Any], strategy: Strategy, space: Space) -> None:
    """Raises FieldError on ``params.strategy_params.<name>``."""
    declared = {param.name: param for param in strategy.params}
    for name, value in fixed.items():
        at = f"params.strategy_params.{name}"
        if name in space.names:
            raise FieldError(at, "is searched over as well: name it in one of the two")
        if strategy.declared is None:
            continue
        if name not in declared:
            known = ", ".join(sorted(declared)) or "none"
            raise FieldError(at, f"{shown(name)} is not a parameter of {strategy.name}; known are: {known}")
        try:
            declared[name].check(value)
        except FieldError as error:
            raise FieldError(at, error.message) from None


def known_by(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a combination from another; True is not 1 here."""
    return tuple((type(value) is bool, value) for value in params.values())


def trial(number: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """The item for trial ``number``."""
    return {"key": f"trial-{number:05d}", "trial": number, "params": dict(params)}


def check_trial(item: Item) -> dict[str, Any]:
    """``item`` if it is a trial. Raises ValueError, saying what one looks like."""
    if (
        isinstance(item, dict)
        and item.keys() <= {"key", "trial", "params"}
        and isinstance(item.get("params"), dict)
        and isinstance(item.get("trial"), int)
        and not isinstance(item["trial"], bool)
        and 0 <= item["trial"] < 2**31
    ):
        return item
    raise ValueError(
        f"{shown(item)} is not a trial such as {{'key': 'trial-00000', 'trial': 0, 'params': {{'fast': 5}}}}; "
        "leave items out, and the run makes its trials itself (symbols go into params.symbols)"
    )
