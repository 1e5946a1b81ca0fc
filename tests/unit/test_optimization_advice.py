"""TPE's advice: the same trials whoever is faster and whoever was restarted, none twice, and better than chance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from typing import Any

import optuna
import pytest

from nodes.executors.optimization import Optimization
from nodes.optimizing.advice import Advice, Told, _seed
from nodes.optimizing.searching import Search

Params = dict[str, Any]
SPACE = {"fast": {"low": 2, "high": 80}, "slow": {"low": 81, "high": 400, "log": True}, "kind": ["sma", "ema"]}
MANY: Params = {"source": "sample", "symbols": ["AAPL"], "strategy": "ma_cross", "space": SPACE, "search": "tpe"}


def search_of(**given: Any) -> Search:
    return Search.of(Optimization.check(MANY | given))


def hill(params: Params) -> float:
    """Highest, 10, at fast 33, slow 150, ema."""
    bonus = 10.0 if params["kind"] == "ema" else 5.0
    return bonus - ((params["fast"] - 33) / 10) ** 2 - (4 * math.log(params["slow"] / 150)) ** 2


def told(params: Params, number: int) -> Told | None:
    """Some trials fail, some have no value, and a long fast average is not allowed."""
    if number % 13 == 5:
        return None
    if number % 17 == 8:
        return Told(None, 1.0)
    return Told(hill(params), max(0.0, params["fast"] - 60) / 60)


def gone_through(
    search: Search,
    *,
    order: int = 0,
    restarts: Collection[int] = (),
    worth: Callable[[Params, int], Told | None] = told,
) -> list[Params]:
    """The trials of ``search``, results coming in by chance (``order``), with a new Advice at ``restarts``."""
    chance = random.Random(order)
    trials = list(search.first())
    under_way = list(range(len(trials)))
    advice = again(search, trials)
    ended: dict[int, Told | None] = {}
    while under_way:
        number = under_way.pop(chance.randrange(len(under_way)))
        ended[number] = worth(trials[number], number)
        while (params := advice.next(ended)) is not None:
            under_way.append(len(trials))
            trials.append(params)
            assert len(under_way) <= search.parallel
            if len(trials) in restarts:
                advice = again(search, trials)
    return trials


def again(search: Search, trials: list[Params]) -> Advice:
    advice = Advice(search)
    for params in trials:
        advice.known(params)
    return advice


@pytest.mark.parametrize("parallel", [1, 4, 16])
def test_the_same_seed_gives_the_same_trials_in_whatever_order_they_end(parallel: int) -> None:
    search = search_of(trials=50, parallel=parallel)
    trials = gone_through(search)
    assert len(trials) == 50
    for order in (1, 2):
        assert gone_through(search_of(trials=50, parallel=parallel), order=order) == trials
    others = gone_through(search_of(trials=50, parallel=parallel, seed=1))
    assert sum(one == other for one, other in zip(trials, others, strict=True)) <= 1


def test_a_restart_at_any_time_goes_on_with_the_same_trials() -> None:
    search = search_of(trials=45, parallel=6)
    trials = gone_through(search)
    assert gone_through(search, restarts=range(7, 45)) == trials
    assert gone_through(search, restarts=[30], order=4) == trials


def test_more_trials_begin_with_the_fewer_ones() -> None:
    assert gone_through(search_of(trials=40, parallel=5))[:25] == gone_through(search_of(trials=25, parallel=5))


def test_it_is_what_optuna_alone_asks_for_with_the_same_seeds() -> None:
    space = {"lower": {"low": 1, "high": 45}, "upper": {"low": 55, "high": 95}}
    search = search_of(strategy="rsi_reversion", space=space, trials=40, parallel=4, objective="max_drawdown")

    def bowl(params: Params, number: int = 0) -> Told:
        return Told((params["lower"] - 40) ** 2 + (params["upper"] - 70) ** 2, max(0.0, params["lower"] - 30))

    alone = optuna.create_study(direction="minimize")
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "lower": optuna.distributions.FloatDistribution(1, 45),
        "upper": optuna.distributions.FloatDistribution(55, 95),
    }
    asked: list[optuna.Trial] = []
    for number in range(40):
        if number >= 4:
            trial = asked[number - 4]
            worth = bowl(trial.params)
            trial.set_constraint("violation", worth.violation)
            assert worth.value is not None
            alone.tell(trial, worth.value)
        else:
            alone.enqueue_trial(search.drawn[number])
        alone.sampler = optuna.samplers.TPESampler(seed=_seed(0, number, 0))
        asked.append(alone.ask(distributions))
    assert gone_through(search, worth=bowl, order=3) == [trial.params for trial in asked]


def test_it_finds_more_than_chance_does() -> None:
    for seed in range(3):
        search = search_of(trials=80, parallel=4, seed=seed)
        later = gone_through(search, worth=lambda params, _: Told(hill(params), 0.0))[40:]
        assert sum(map(hill, later)) / 40 > max(0.0, sum(map(hill, search.drawn)) / 80) + 3


def test_it_keeps_away_from_what_constraints_forbid_even_where_the_best_would_be() -> None:
    broken = 0
    for seed in range(3):
        search = search_of(trials=80, parallel=4, seed=seed)
        later = gone_through(search, worth=lambda params, _: Told(hill(params), max(0.0, params["fast"] - 25)))[40:]
        broken += sum(params["fast"] > 25 for params in later)
    # Of 120; of all values three quarters are forbidden, and the top of the hill is at 33.
    assert broken < 60


def test_no_trial_comes_twice_and_all_are_what_the_strategy_takes() -> None:
    space = {"fast": {"low": 3, "high": 9}, "slow": {"low": 5, "high": 12}, "kind": ["sma"]}
    search = search_of(space=space, trials=1000, parallel=4)
    assert search.total() == 2 * 8 + 7 + 6 + 5 + 4 + 3
    trials = gone_through(search, worth=lambda params, _: Told(params["slow"] - params["fast"], 0.0))
    assert len({(params["fast"], params["slow"]) for params in trials}) == len(trials) == search.total()
    assert all(params["fast"] < params["slow"] for params in trials)


def test_it_goes_on_where_every_trial_fails() -> None:
    search = search_of(trials=30, parallel=3)
    assert len(gone_through(search, worth=lambda params, number: None)) == 30
    assert len(gone_through(search, worth=lambda params, number: Told(None, 2.0))) == 30


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ([5, 10, 20], {5, 10, 20}),
        ([20, 5, 10], {20, 5, 10}),
        ({"low": 5, "high": 7}, {5, 6, 7}),
        ({"low": 5, "high": 8, "log": True}, {5, 6, 7, 8}),
        ({"low": 1, "high": 401, "step": 100}, {1, 101, 201, 301, 401}),
        ({"low": 7, "high": 7}, {7}),
    ],
)
def test_what_is_advised_is_in_the_space_to_its_ends(spec: Any, values: set[int]) -> None:
    search = search_of(space={"fast": spec, "kind": ["ema", "sma"]}, strategy_params={"slow": 500}, trials=60)
    trials = gone_through(search, worth=lambda params, number: Told(float(number % 7), 0.0))
    assert {params["fast"] for params in trials} == values
    assert all(type(params["fast"]) is int for params in trials)
    assert len(trials) == 2 * len(values)


def test_wide_ranges_of_steps_keep_to_their_steps() -> None:
    space = {"lower": {"low": 0.1, "high": 40, "step": 0.1}, "upper": {"low": 50, "high": 95, "log": True}}
    search = search_of(strategy="rsi_reversion", space=space, trials=60, parallel=3)
    trials = gone_through(search, worth=lambda params, _: Told(params["lower"], 0.0))
    assert all(params["lower"] == round(params["lower"], 1) and 0.1 <= params["lower"] <= 40 for params in trials)
    assert all(50 <= params["upper"] <= 95 for params in trials)
    assert max(params["lower"] for params in trials[20:]) > 39
