"""What TPE tries next (optuna, ask and tell). Imports optuna and numpy: for a parent that has such a run.

Trial n is asked for when exactly the trials 0 to n - parallel have been told, in the order of their numbers, whenever
their results came; those between count as under way (TPE's constant liar keeps away from them). Each is asked for with
a sampler of its own, seeded by the search's seed and n. So the params of trial n follow from the search, the params of
the trials before it and the results of those told: who was faster does not matter, nor whether the parent restarted.

TPE: J. Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; constraints as optuna has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from nodes.optimizing.searching import Search, known_by
from nodes.optimizing.space import Continuous, Dimension, Listed, Stepped

optuna.logging.set_verbosity(optuna.logging.WARNING)

TRIES = 4
"""So often TPE is asked where it repeats a trial, or names what the strategy does not take."""
FEW = 20
"""Steps up to which TPE sees a range as steps; with more as a continuous one, since sums over steps cost it 20 times as
much and find the same."""


class Told(NamedTuple):
    """What came of a trial; ``violation`` is 0 where all constraints hold."""

    value: float | None
    violation: float


class Advice:
    """One search as it goes on. ``asked`` trials are there, ``told`` of them have results."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.total = search.total()
        self.asked = self.told = 0
        self._study: Study = optuna.create_study(
            sampler=RandomSampler(0), direction="maximize" if search.maximize else "minimize"
        )
        self._distributions = {each.name: _distribution(each) for each in search.space.dimensions}
        self._under_way: dict[int, Trial] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._spare: Iterator[dict[str, Any]] = iter(search.drawn)

    def known(self, params: Mapping[str, Any]) -> None:
        """The next trial is there, with ``params``: one of the first, one from before a restart, or one just chosen."""
        self._study.enqueue_trial(self._inner(params))
        self._study.sampler = RandomSampler(0)  # it has nothing to choose
        self._under_way[self.asked] = self._study.ask(self._distributions)
        self._seen.add(known_by(params))
        self.asked += 1

    def next(self, ended: Mapping[int, Told | None]) -> dict[str, Any] | None:
        """Params of the next trial; None while it waits for results, or where there is none.

        ``ended``: by number, what came of trials; None: nothing, it failed.
        """
        if self.asked >= self.total:
            return None
        while self.told <= self.asked - self.search.parallel:
            if self.told not in ended:
                return None
            self._tell(ended[self.told])
        return self._ask()

    def _tell(self, told: Told | None) -> None:
        trial = self._under_way.pop(self.told)
        self.told += 1
        if told is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint("violation", told.violation)
        # A value is not looked at where constraints are broken, as they are where there is none.
        self._study.tell(trial, 0.0 if told.value is None else told.value)

    def _ask(self) -> dict[str, Any]:
        for attempt in range(TRIES):
            self._study.sampler = _Sampler(self._distributions, _seed(self.search.seed, self.asked, attempt))
            question = self._study.ask(self._distributions)
            params = self._outer(question.params)
            # The trial itself is the answer on its steps, so that it is the same however it came to be known.
            self._study.tell(question, state=TrialState.FAIL)
            if known_by(params) not in self._seen and self.search.allows(params):
                break
        else:
            # There are as many drawn ones as trials, so that one is left.
            params = next(each for each in self._spare if known_by(each) not in self._seen)
        self.known(params)
        return params

    def _inner(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """``params`` as the study has them: of what has places, the place."""
        return {
            each.name: params[each.name]
            if isinstance(each, Continuous) or _by_size(each)
            else each.place(params[each.name])
            for each in self.search.space.dimensions
        }

    def _outer(self, found: Mapping[str, Any]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for each in self.search.space.dimensions:
            value = found[each.name]
            if not isinstance(each, Continuous):
                value = round(value) if _by_size(each) else each.at(min(max(round(value), 0), each.size - 1))
            params[each.name] = value
        return params


class _Sampler(TPESampler):
    """TPE that is told the space, instead of gathering it from all trials each time."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(seed=seed)
        self._told = {name: each for name, each in sorted(distributions.items()) if not each.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._told


def _by_size(dimension: Dimension) -> bool:
    """Whether the study has the values of its steps, not their places: with ``log`` it matters how large they are."""
    return isinstance(dimension, Stepped) and dimension.log


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Continuous):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if isinstance(dimension, Stepped) and dimension.log:
        if dimension.size <= FEW:
            return IntDistribution(int(dimension.low), int(dimension.high), log=True)
        return FloatDistribution(dimension.low, dimension.high, log=True)
    if isinstance(dimension, Listed) and not _ascending(dimension.values):
        return CategoricalDistribution(range(dimension.size))
    if dimension.size <= FEW:
        return IntDistribution(0, dimension.size - 1)
    return FloatDistribution(-0.5, dimension.size - 0.5)


def _ascending(values: tuple[Any, ...]) -> bool:
    """Numbers in order: what is near to what is known then."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) and numbers == sorted(numbers)


def _seed(seed: int, number: int, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:4])
