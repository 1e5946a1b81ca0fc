"""What a trial is worth: its backtests over all symbols, in sample and out of sample, against the constraints.

Folds are cut by time, and the same for all symbols: fold k trains on a window and is tested on what comes right after
it, and the next fold's window begins so much later that its test follows the one before (rolling walk-forward; R.
Pardo, The Evaluation and Optimization of Trading Strategies, 2nd ed., 2008). What is told of a part has seen no bar
after it: strategies get the bars up to its end, and no others. Earlier bars warm up its averages.

Imports numpy: for workers. What users give is checked in ``terms``.
"""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nodes import backtesting
from nodes.backtesting import Strategy
from nodes.executors.base import ItemFailed
from nodes.optimizing.terms import Terms

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

LEAST_BARS = 2
"""In a part: with fewer there is no return."""

Metrics = Mapping[str, float | None]


class Part(NamedTuple):
    """Bars [start, stop) of a timeline."""

    start: int
    stop: int


class Fold(NamedTuple):
    train: Part
    test: Part | None


@dataclass(frozen=True)
class Verdict:
    """``value``: the objective over what was scored, None where it has none. ``violation``: 0 where all constraints
    hold, else by how much they do not, as shares of their bounds. ``metrics``: means over symbols and folds scored.
    ``symbols`` and ``folds``: value, in_sample and out_of_sample of each; a fold's violation is in its training."""

    value: float | None
    violation: float
    in_sample: float | None
    out_of_sample: float | None
    metrics: dict[str, float | None]
    symbols: dict[str, dict[str, float | None]]
    folds: list[dict[str, Any]]

    @property
    def feasible(self) -> bool:
        return self.value is not None and not self.violation


def cut(bars: int, folds: int, train: float) -> list[Fold]:
    """The folds of a timeline of so many ``bars``; ``train`` is the share of a fold's window that it is trained on.

    The tests of all folds together are the end of the timeline, without a gap and without a bar twice.
    Raises ItemFailed where a part would have fewer than LEAST_BARS.
    """
    window = bars / (1 + (folds - 1) * (1 - train))
    rest = window * (1 - train)
    made = []
    for number in range(folds):
        begin, middle = round(number * rest), round(window * train + number * rest)
        end = round(window * train + (number + 1) * rest)
        test = Part(middle, end) if train < 1 else None
        if any(part.stop - part.start < LEAST_BARS for part in (Part(begin, middle), test) if part):
            raise ItemFailed(f"{bars} bars are too few for {folds} folds of which {train:g} is for training")
        made.append(Fold(Part(begin, middle), test))
    return made


class Bench:
    """Bars of all symbols, laid out for many trials.

    ``bars``: by symbol, oldest first; those before ``start`` warm up. Raises ItemFailed where they are too few for the
    folds.
    """

    def __init__(self, bars: Mapping[str, pd.DataFrame], terms: Terms, start: dt.date | None = None) -> None:
        self.bars = bars
        self.terms = terms
        self.dates = {symbol: frame["datetime"].to_numpy() for symbol, frame in bars.items()}
        self.timeline: NDArray[Any] = np.unique(np.concatenate(list(self.dates.values())))
        if start is not None:
            self.timeline = self.timeline[self.timeline >= np.datetime64(start, "us")]
            if not len(self.timeline):
                raise ItemFailed(f"there are no bars from {start} on")
        self.folds = cut(len(self.timeline), terms.folds, terms.train)
        self.whole = Part(0, len(self.timeline))

    def judge(self, strategy: Strategy, params: Mapping[str, Any]) -> Verdict:
        """``params``: all of the strategy's, checked. Raises ValueError, and whatever somebody else's rule raises."""
        terms = self.terms
        parts = {part for fold in self.folds for part in fold if part}
        scored = self._scored()
        parts.update(scored)
        found: dict[str, dict[Part, Metrics | None]] = {
            symbol: self._measured(symbol, strategy, params, parts) for symbol in self.bars
        }

        def over(wanted: Iterable[Part | None]) -> float | None:
            """The objective, over symbols and then over ``wanted`` parts."""
            values = [terms.together(terms.values(found[symbol][part] for symbol in found)) for part in wanted if part]
            return _mean(value for value in values if value is not None)

        trains = [fold.train for fold in self.folds]
        tests = [fold.test for fold in self.folds]
        judged = [found[symbol][part] for symbol in found for part in scored]
        return Verdict(
            value=over(scored),
            violation=terms.violation(judged),
            in_sample=over(trains),
            out_of_sample=over(tests),
            metrics={
                name: _mean(value for each in judged if each and (value := each[name]) is not None)
                for name in backtesting.METRICS
            },
            symbols={
                symbol: {
                    "value": _mean(terms.values(each[part] for part in scored)),
                    "in_sample": _mean(terms.values(each[part] for part in trains)),
                    "out_of_sample": _mean(terms.values(each[part] for part in tests if part)),
                }
                for symbol, each in found.items()
            },
            folds=[
                {
                    "fold": number,
                    "train_from": self._date(fold.train.start),
                    "test_from": self._date(fold.test.start) if fold.test else None,
                    "last": self._date((fold.test or fold.train).stop - 1),
                    "violation": terms.violation([found[symbol][fold.train] for symbol in found]),
                    "in_sample": over([fold.train]),
                    "out_of_sample": over([fold.test]),
                }
                for number, fold in enumerate(self.folds, 1)
            ],
        )

    def _scored(self) -> Sequence[Part]:
        if self.terms.score_on == "all":
            return [self.whole]
        if self.terms.score_on == "test":
            return [fold.test for fold in self.folds if fold.test]
        return [fold.train for fold in self.folds]

    def _measured(
        self, symbol: str, strategy: Strategy, params: Mapping[str, Any], parts: Iterable[Part]
    ) -> dict[Part, Metrics | None]:
        """By part; None where the symbol has no bars in it to speak of."""
        measured: dict[Part, Metrics | None] = {}
        positions: dict[int, NDArray[np.float64]] = {}
        dates = self.dates[symbol]
        for part in parts:
            start = int(np.searchsorted(dates, self.timeline[part.start]))
            after = part.stop == len(self.timeline)
            stop = len(dates) if after else int(np.searchsorted(dates, self.timeline[part.stop]))
            if stop - start < LEAST_BARS:
                measured[part] = None
                continue
            # Cut off here, not by the engine: what comes later is not there to be looked at.
            seen = self.bars[symbol].iloc[:stop]
            if stop not in positions:
                positions[stop] = strategy.positions(seen, params)
            result = backtesting.run(seen, positions[stop], start=start, stop=stop, detail=False, **self.terms.options)
            measured[part] = result.metrics
        return measured

    def _date(self, at: int) -> str:
        return str(np.datetime_as_string(self.timeline[at], "s")).removesuffix("T00:00:00")


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
