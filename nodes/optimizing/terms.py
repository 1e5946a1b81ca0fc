"""What a trial is judged by: the objective, how symbols count together, constraints, folds. Light."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nodes import backtesting
from nodes.backtesting import METRICS, SMALLER_IS_BETTER
from nodes.executors.base import Param, shown
from nodes.protocol import FieldError

DIRECTIONS = ("maximize", "minimize")
AGGREGATES = ("mean", "median", "worst")
PARTS = ("train", "test", "all")
PARAMS = (
    Param("objective", "string", "sharpe", "The metric that decides.", choices=tuple(METRICS)),
    Param(
        "direction", "string", None, "Of the objective; without it, as is better for that metric.", choices=DIRECTIONS
    ),
    Param("aggregate", "string", "mean", "How the objective of several symbols becomes one.", choices=AGGREGATES),
    Param(
        "constraints",
        "object",
        {},
        'Bounds that must hold for each symbol and fold: {"max_drawdown": {"max": 0.3}, "trades": {"min": 10}}.',
    ),
    Param("folds", "integer", 1, "Folds of a walk-forward split.", minimum=1, maximum=100),
    Param("train", "number", 0.7, "Share of a fold that it is trained on; 1: no test.", minimum=0.05, maximum=1),
    Param("score_on", "string", "train", "The part that objective and constraints are about.", choices=PARTS),
)


@dataclass(frozen=True)
class Terms:
    """``constraints``: metric -> {"min": …, "max": …}, one of them or both. ``options``: of the backtests."""

    objective: str
    maximize: bool
    aggregate: str
    constraints: Mapping[str, Mapping[str, float]]
    folds: int
    train: float
    score_on: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Terms:
        """By params whose kinds have been checked and whose direction is there. Raises FieldError."""
        folds, train, score_on = params["folds"], params["train"], params["score_on"]
        if train == 1 and folds > 1:
            raise FieldError("params.train", f"1 leaves nothing to test {folds} folds on: give a share below 1")
        if train == 1 and score_on == "test":
            raise FieldError("params.score_on", "'test' needs a part to test on: give train a share below 1")
        return cls(
            objective=params["objective"],
            maximize=params["direction"] == "maximize",
            aggregate=params["aggregate"],
            constraints=_constraints(params["constraints"]),
            folds=folds,
            train=float(train),
            score_on=score_on,
            options=backtesting.options(params),
        )

    def values(self, found: Iterable[Mapping[str, float | None] | None]) -> list[float]:
        """The objective of each that has one."""
        return [value for metrics in found if metrics is not None and (value := metrics[self.objective]) is not None]

    def together(self, values: list[float]) -> float | None:
        """Of several symbols."""
        if not values:
            return None
        if self.aggregate == "median":
            return statistics.median(values)
        if self.aggregate == "worst":
            return min(values) if self.maximize else max(values)
        return statistics.fmean(values)

    def violation(self, judged: Iterable[Mapping[str, float | None] | None]) -> float:
        """By how much constraints are broken: of each bound the worst excess, as a share of it, added up.

        A metric without a value breaks a bound entirely; so does an objective without one, by the share of those
        that lack it.
        """
        found = [metrics for metrics in judged if metrics is not None]
        if not found:
            return 1.0
        broken = sum(metrics[self.objective] is None for metrics in found) / len(found)
        for name, bounds in self.constraints.items():
            for side, bound in bounds.items():
                broken += max(_excess(metrics[name], side, bound) for metrics in found)
        return broken


def direction_of(params: Mapping[str, Any]) -> str:
    """The direction given, or the one in which the objective gets better."""
    given: str | None = params.get("direction")
    return given or ("minimize" if params["objective"] in SMALLER_IS_BETTER else "maximize")


def _excess(value: float | None, side: str, bound: float) -> float:
    if value is None:
        return 1.0
    beyond = bound - value if side == "min" else value - bound
    return max(beyond, 0.0) / (abs(bound) or 1.0)


def _constraints(given: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    read: dict[str, dict[str, float]] = {}
    for name, bounds in given.items():
        field = f"params.constraints.{name}"
        if name not in METRICS:
            named = field if name.isidentifier() and len(name) <= 60 else "params.constraints"
            raise FieldError(named, f"{shown(name)} is not a metric; known are: {', '.join(METRICS)}")
        if not isinstance(bounds, dict) or not bounds or bounds.keys() - {"min", "max"}:
            raise FieldError(field, f'{shown(bounds)} is not an object such as {{"max": 0.3}} or {{"min": 10}}')
        read[name] = {}
        for side, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                raise FieldError(f"{field}.{side}", f"{shown(bound)} is not a number")
            read[name][side] = bound
        if "min" in bounds and "max" in bounds and bounds["min"] > bounds["max"]:
            raise FieldError(f"{field}.max", f"{shown(bounds['max'])} is below min, {shown(bounds['min'])}")
    return read
