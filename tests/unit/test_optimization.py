"""``optimization``: what may be searched, which trials there are, what a trial is worth."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.results.datasets import with_lineage
from dispatch.results.store import Part as Saved
from dispatch.results.store import ResultStore
from nodes import executors, surroundings
from nodes.executors import optimization
from nodes.executors.base import ItemFailed
from nodes.executors.optimization import Optimization
from nodes.executors.rows import to_table
from nodes.optimizing.scoring import Bench, cut
from nodes.optimizing.searching import Search
from nodes.optimizing.terms import Terms
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

SPACE = {"fast": {"low": 5, "high": 20, "step": 5}, "slow": [30, 50], "kind": ["sma", "ema"]}
SAMPLE: dict[str, Any] = {"source": "sample", "symbols": ["AAPL"], "strategy": "ma_cross", "space": SPACE}
GRID = SAMPLE | {"search": "grid"}
DAY = dt.datetime(2020, 1, 1)
looked_at: list[np.datetime64] = []


def hold(bars: pd.DataFrame, params: dict[str, int]) -> np.ndarray:
    """Long from bar `enter` to bar `leave`."""
    number = np.arange(len(bars))
    return ((number >= params["enter"]) & (number < params["leave"])).astype(float)


def seer(bars: pd.DataFrame, params: dict[str, Any]) -> np.ndarray:
    """Cheats as far as it can: long before each rise that it is shown, and notes how far it saw."""
    looked_at.append(bars["datetime"].to_numpy()[-1])
    rises = np.diff(bars["close"].to_numpy(), append=0.0) > 0
    return rises.astype(float)


def broken(bars: pd.DataFrame, params: dict[str, Any]) -> np.ndarray:
    raise ZeroDivisionError(f"no way with {params['x']}")


@pytest.fixture
def allowed() -> Iterator[None]:
    """The strategies above are on this machine's list."""
    before = surroundings.current()
    surroundings.settle(Surroundings(custom={each: f"{__name__}:{each}" for each in ("hold", "seer", "broken")}))
    yield
    surroundings.settle(before)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    optimization._benches.clear()
    looked_at.clear()


def frame(prices: Any, start: dt.datetime = DAY) -> pd.DataFrame:
    """Daily bars that open and close at ``prices``."""
    prices = np.asarray(prices, dtype="float64")
    dates = np.array([start + dt.timedelta(days=number) for number in range(len(prices))], dtype="datetime64[us]")
    return pd.DataFrame({"datetime": dates, **dict.fromkeys(("open", "high", "low", "close"), prices), "volume": 1.0})


def files(folder: Path, **prices: Any) -> dict[str, Any]:
    """Params for bars at these prices."""
    for symbol, each in prices.items():
        frame(each).to_csv(folder / f"{symbol}.csv", index=False)
    return {"source": "files", "path": str(folder), "symbols": list(prices)}


def search_of(params: dict[str, Any]) -> Search:
    return Search.of(Optimization.check(params))


def judged(params: dict[str, Any], items: Any = None, **given: Any) -> pd.DataFrame:
    """The rows of all trials, by trial."""
    checked = Optimization.check(params)
    executor = Optimization(checked)
    for name, value in given.items():
        setattr(executor, name, value)
    rows = [row for item in items or Optimization.begin([], checked) for row in executor.run(item)]
    return pd.DataFrame(rows, columns=Optimization.dataset.names).set_index("trial", drop=False)


# What may be searched


def test_it_is_registered_and_light_to_check() -> None:
    assert executors.get("optimization") is Optimization
    code = (
        "import sys; from nodes.executors.optimization import Optimization as O;"
        f"p = O.check({SAMPLE!r}); items = O.begin([], p); assert O.expected(items, p) == 16, items;"
        "print([name for name in ('numpy', 'pandas', 'optuna', 'django') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr


def test_a_parent_without_such_a_run_loads_neither_optuna_nor_numpy(tmp_path: Path) -> None:
    code = (
        "import sys, django; django.setup(); import cascade.roles, dispatch.advising as advising;"
        "advising.Advisor(); from nodes import executors; executors.get('optimization');"
        "print([name for name in ('numpy', 'pandas', 'optuna', 'duckdb') if name in sys.modules])"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "cascade.settings", "CASCADE_DATA_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=env)
    assert done.stdout.strip() == "[]", done.stderr


def test_checked_params_are_whole_and_stay_as_they_are() -> None:
    checked = Optimization.check(SAMPLE | {"objective": "max_drawdown"})
    assert checked["direction"] == "minimize"
    assert Optimization.check(SAMPLE)["direction"] == "maximize"
    assert Optimization.check(checked) == checked
    text = Optimization.check(SAMPLE | {"space": json.dumps(SPACE), "symbols": "AAPL,IBM"})
    assert text["space"] == checked["space"]
    assert text["symbols"] == ["AAPL", "IBM"]


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"symbols": None}, "params.symbols", "is required"),
        ({"symbols": []}, "params.symbols", "1 to 1000"),
        ({"symbols": ["AAPL", " x"]}, "params.symbols[1]", "no space"),
        ({"symbols": ["AAPL", "AAPL"]}, "params.symbols[1]", "there twice"),
        ({"strategy": "nope"}, "params.strategy", "ma_cross"),
        ({"space": {}}, "params.space", "is empty"),
        ({"space": None}, "params.space", "is required"),
        ({"space": {"fats": [1]}}, "params.space.fats", "known are: fast, kind, slow"),
        ({"space": {"fast": 5}}, "params.space.fast", "strategy_params"),
        ({"space": {"fast": []}}, "params.space.fast", "0 values"),
        ({"space": {"fast": [5, 5.5]}}, "params.space.fast[1]", "5.5 is not a whole number"),
        ({"space": {"fast": [5, 5]}}, "params.space.fast[1]", "there twice"),
        ({"space": {"fast": [5, [6]]}}, "params.space.fast[1]", "a text, a number"),
        ({"space": {"fast": [0]}}, "params.space.fast[0]", "below the least allowed, 1"),
        ({"space": {"kind": ["sma", "wma"]}}, "params.space.kind[1]", "one of: sma, ema"),
        ({"space": {"kind": {"low": 1, "high": 2}}}, "params.space.kind", "give a list"),
        ({"space": {"fast": {"low": 5}}}, "params.space.fast.high", "is required"),
        ({"space": {"fast": {"low": 9, "high": 5}}}, "params.space.fast.high", "5 is below low, 9"),
        ({"space": {"fast": {"low": 0, "high": 5}}}, "params.space.fast.low", "below the least allowed"),
        ({"space": {"fast": {"low": 1, "high": 10**9}}}, "params.space.fast.high", "above the most allowed, 1000"),
        ({"space": {"fast": {"low": True, "high": 5}}}, "params.space.fast.low", "True is not a number"),
        ({"space": {"fast": {"low": 1, "high": 5, "stride": 1}}}, "params.space.fast", "'stride' is not one of"),
        ({"space": {"fast": {"low": 1, "high": 5, "step": 0}}}, "params.space.fast.step", "not above 0"),
        ({"space": {"fast": {"low": 1, "high": 5, "step": 0.5}}}, "params.space.fast.step", "whole number"),
        ({"space": {"fast": {"low": 1, "high": 5, "log": 1}}}, "params.space.fast.log", "true or false"),
        ({"space": {"fast": {"low": 1, "high": 5, "log": True, "step": 2}}}, "params.space.fast.step", "leave one"),
        ({"space": {"slow": [5]}, "strategy_params": {"fast": 9}}, "params.space", "none of its combinations"),
        ({"strategy_params": {"fast": 9}}, "params.strategy_params.fast", "searched over as well"),
        ({"strategy_params": {"fats": 9}}, "params.strategy_params.fats", "known are"),
        ({"space": {"fast": [5]}, "strategy_params": {"slow": "x"}}, "params.strategy_params.slow", "whole number"),
        ({"search": "luck"}, "params.search", "grid, random, tpe"),
        ({"trials": 0}, "params.trials", "below the least"),
        ({"trials": 5_001}, "params.trials", "5000"),
        ({"search": "grid", "trials": 15}, "params.space", "16 combinations, at most 15"),
        ({"seed": -1}, "params.seed", "below the least"),
        ({"parallel": 0}, "params.parallel", "below the least"),
        ({"objective": "luck"}, "params.objective", "total_return"),
        ({"constraints": {"luck": {"max": 1}}}, "params.constraints.luck", "known are"),
        ({"constraints": {"trades": 5}}, "params.constraints.trades", '{"min": 10}'),
        ({"constraints": {"trades": {}}}, "params.constraints.trades", '{"min": 10}'),
        ({"constraints": {"trades": {"min": "x"}}}, "params.constraints.trades.min", "not a number"),
        ({"constraints": {"trades": {"min": 5, "max": 4}}}, "params.constraints.trades.max", "below min"),
        ({"folds": 2, "train": 1}, "params.train", "nothing to test"),
        ({"train": 1, "score_on": "test"}, "params.score_on", "below 1"),
        ({"study": "x" * 201}, "params.study", "at most 200"),
        ({"freq": "5min"}, "params.freq", "not offered"),
    ],
)
def test_bad_params_are_refused_by_name(given: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(FieldError) as refusal:
        Optimization.check(SAMPLE | given)
    assert (refusal.value.field, message in refusal.value.message) == (field, True), refusal.value


def test_a_grid_needs_an_end() -> None:
    rsi = SAMPLE | {"strategy": "rsi_reversion", "search": "grid"}
    with pytest.raises(FieldError, match=r"params\.space\.lower\.step: is required in a grid"):
        Optimization.check(rsi | {"space": {"lower": {"low": 10, "high": 40}}})
    with pytest.raises(FieldError, match=r"params\.space\.period\.log: says nothing in a grid"):
        Optimization.check(rsi | {"space": {"period": {"low": 2, "high": 30, "log": True}}})
    with pytest.raises(FieldError, match=r"990,000 combinations, at most 100,000 are allowed"):
        Optimization.check(GRID | {"space": {"fast": {"low": 1, "high": 990}, "slow": {"low": 1001, "high": 2000}}})


# Which trials there are


def test_a_grid_has_every_combination_that_the_strategy_takes_once_and_in_order() -> None:
    params = Optimization.check(GRID | {"space": {"fast": {"low": 10, "high": 40, "step": 15}, "slow": [20, 30]}})
    items = Optimization.begin([], params)
    pairs = [(item["params"]["fast"], item["params"]["slow"]) for item in items if isinstance(item, dict)]
    assert pairs == [(10, 20), (10, 30), (25, 30)]
    assert items[2] == {"key": "trial-00002", "trial": 2, "params": {"fast": 25, "slow": 30}}
    assert Optimization.expected(items, params) is None


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
def test_the_order_in_which_parameters_are_named_says_nothing(search: str) -> None:
    turned = dict(reversed(list(SPACE.items())))
    one, other = (search_of(SAMPLE | {"search": search, "space": space}) for space in (SPACE, turned))
    assert [list(each.items()) for each in one.drawn] == [list(each.items()) for each in other.drawn]


def test_steps_are_counted_in_decimals() -> None:
    space = search_of(
        GRID | {"strategy": "rsi_reversion", "space": {"lower": {"low": 10, "high": 10.5, "step": 0.1}}}
    ).space
    assert [space.at(number)["lower"] for number in range(space.size or 0)] == [10.0, 10.1, 10.2, 10.3, 10.4, 10.5]


RANDOM = SAMPLE | {
    "search": "random",
    "strategy": "rsi_reversion",
    "space": {
        "period": {"low": 2, "high": 200, "log": True},
        "lower": {"low": 1, "high": 45},
        "upper": {"low": 55, "high": 95, "step": 2.5},
    },
    "trials": 300,
}


def test_the_same_seed_gives_the_same_random_trials_and_another_others() -> None:
    first = search_of(RANDOM).drawn
    assert first == search_of(RANDOM).drawn == search_of(json.loads(json.dumps(RANDOM))).drawn
    assert first != search_of(RANDOM | {"seed": 1}).drawn
    assert search_of(RANDOM | {"trials": 40}).drawn == first[:40]


def test_random_trials_keep_to_their_ranges_and_log_ones_try_small_values_more_often() -> None:
    drawn = search_of(RANDOM).drawn
    assert len(drawn) == 300
    assert all(2 <= each["period"] <= 200 and isinstance(each["period"], int) for each in drawn)
    assert all(1 <= each["lower"] <= 45 for each in drawn)
    assert {each["upper"] for each in drawn} <= {55 + 2.5 * number for number in range(17)}
    assert 120 < sum(each["period"] <= 20 for each in drawn) < 180


@pytest.mark.parametrize("log", [False, True])
def test_random_trials_do_not_repeat_and_end_with_the_space(log: bool) -> None:
    spec = {"low": 1, "high": 30, **({"log": True} if log else {})}
    params = SAMPLE | {"search": "random", "space": {"fast": spec, "slow": [10, 20]}, "trials": 1000}
    drawn = search_of(params).drawn
    pairs = {(each["fast"], each["slow"]) for each in drawn}
    assert len(pairs) == len(drawn) == 9 + 19
    assert all(fast < slow for fast, slow in pairs)


def test_a_search_that_learns_begins_with_as_many_trials_as_may_be_under_way() -> None:
    params = Optimization.check(SAMPLE | {"parallel": 5, "trials": 12})
    items = Optimization.begin([], params)
    assert [item["trial"] for item in items if isinstance(item, dict)] == [0, 1, 2, 3, 4]
    assert Optimization.expected(items, params) == 12


def test_trials_may_be_named_instead() -> None:
    params = Optimization.check(SAMPLE)
    items: list[Any] = [{"key": "mine", "trial": 7, "params": {"fast": 3, "slow": 9}}]
    assert Optimization.begin(items, params) == items
    assert Optimization.expected(items, params) is None
    with pytest.raises(FieldError, match=r"items\[0\]\.params\.slow"):
        Optimization.begin([{"trial": 0, "params": {"slow": 0}}], params)
    with pytest.raises(FieldError, match=r"items\[1\]: there is a trial 7 already"):
        Optimization.begin(items * 2, params)
    for bad in ("AAPL", 5, {"trial": 0}, {"trial": -1, "params": {}}, {"trial": 0, "params": {}, "more": 1}):
        with pytest.raises(ValueError, match=r"symbols go into params\.symbols"):
            Optimization.check_item(bad)


# What a trial is worth

DIP = (
    [100.0] * 21 + [100 - 2 * n for n in range(1, 6)] + [90 + 1.5 * n for n in range(21)] + [118 - n for n in range(13)]
)
HOLD = {
    "strategy": f"{__name__}:hold",
    "space": {"enter": {"low": 5, "high": 45, "step": 5}, "leave": {"low": 5, "high": 55, "step": 5}},
    "search": "grid",
    "objective": "total_return",
    "train": 1,
}


@pytest.mark.usefixtures("allowed")
def test_a_grid_finds_the_best_that_can_be_computed_by_hand(tmp_path: Path) -> None:
    # Bought on bar 26 at 90, sold on bar 46 at 120: what is decided on a bar is traded on the next one.
    assert (DIP[26], DIP[46], len(DIP)) == (90, 120, 60)
    rows = judged(HOLD | files(tmp_path, DIP=DIP))
    best = rows.loc[rows["value"].idxmax()]
    assert json.loads(best["params"]) == {"enter": 25, "leave": 45}
    assert best["value"] == pytest.approx(1 / 3, abs=1e-12)
    assert (rows["value"] > best["value"] - 1e-9).sum() == 1
    assert len(rows) == 9 * 11


@pytest.mark.usefixtures("allowed")
def test_a_constraint_moves_the_best_to_where_it_holds(tmp_path: Path) -> None:
    limited = HOLD | files(tmp_path, DIP=DIP) | {"constraints": {"exposure": {"max": 0.2}, "trades": {"min": 1}}}
    rows = judged(limited)
    feasible = rows[rows["feasible"]]
    best = feasible.loc[feasible["value"].idxmax()]
    # Ten bars may be held at most: from 90 to 105.
    assert json.loads(best["params"]) == {"enter": 25, "leave": 35}
    assert best["value"] == pytest.approx(1 / 6, abs=1e-12)
    assert (feasible["violation"] == 0).all()
    assert (rows[~rows["feasible"]]["violation"] > 0).all()
    longest = rows[rows["params"] == '{"enter": 25, "leave": 45}'].iloc[0]
    assert longest["exposure"] == pytest.approx(20 / 59)  # on the first bar nothing can be held
    assert longest["violation"] == pytest.approx((20 / 59 - 0.2) / 0.2)
    idle = rows[rows["params"] == '{"enter": 45, "leave": 5}'].iloc[0]
    assert (idle["violation"], idle["feasible"]) == (1.0, False)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("aggregate", "objective", "value"),
    [
        ("mean", "total_return", 0.2),
        ("median", "total_return", 0.1),
        ("worst", "total_return", 0.0),
        ("worst", "max_drawdown", 0.05),
    ],
)
def test_several_symbols_count_as_asked(tmp_path: Path, aggregate: str, objective: str, value: float) -> None:
    bars = files(tmp_path, A=[100, 100, 100, 150, 150], B=[100, 100, 100, 110, 110], C=[100, 100, 95, 98, 100])
    given = HOLD | bars | {"space": {"enter": [0], "leave": [9]}, "aggregate": aggregate, "objective": objective}
    row = judged(given).iloc[0]
    assert row["value"] == pytest.approx(value, abs=1e-12)
    symbols = json.loads(row["symbols"])
    if objective == "total_return":
        assert {name: round(each["value"], 9) for name, each in symbols.items()} == {"A": 0.5, "B": 0.1, "C": 0.0}


@pytest.mark.usefixtures("allowed")
def test_a_constraint_must_hold_for_each_symbol(tmp_path: Path) -> None:
    bars = files(tmp_path, A=[100, 100, 100, 150, 150], C=[100, 100, 80, 98, 100])
    given = HOLD | bars | {"space": {"enter": [0], "leave": [9]}, "constraints": {"max_drawdown": {"max": 0.16}}}
    row = judged(given).iloc[0]
    assert row["max_drawdown"] == pytest.approx(0.1)  # the mean of both
    assert row["violation"] == pytest.approx(0.25)
    assert not row["feasible"]


@pytest.mark.usefixtures("allowed")
def test_an_objective_without_a_value_is_not_feasible(tmp_path: Path) -> None:
    row = judged(
        HOLD | files(tmp_path, FLAT=[100.0] * 20) | {"objective": "sharpe", "space": {"enter": [1], "leave": [9]}}
    )
    assert row["value"].isna().all()
    assert (row["violation"] == 1).all()
    assert not row["feasible"].any()


# Walk-forward


@given(st.integers(20, 5000), st.integers(1, 12), st.floats(0.05, 0.95))
def test_tests_follow_each_other_to_the_end_and_each_comes_right_after_its_training(
    bars: int, folds: int, train: float
) -> None:
    try:
        made = cut(bars, folds, train)
    except ItemFailed:
        return  # the shortest parts would have no return
    assert len(made) == folds
    assert made[0].train.start == 0
    at = made[0].train.stop
    for fold in made:
        assert fold.test is not None
        assert fold.train.start < fold.train.stop == fold.test.start == at
        at = fold.test.stop
    assert at == bars


def test_too_few_bars_for_the_folds_fail_with_both_numbers() -> None:
    with pytest.raises(ItemFailed, match="20 bars are too few for 10 folds"):
        cut(20, 10, 0.5)


def bench(terms: dict[str, Any], **bars: pd.DataFrame) -> Bench:
    checked = Optimization.check(SAMPLE | {"objective": "total_return"} | terms)
    return Bench(bars, Terms.of(checked))


def walk(seed: int, count: int = 200) -> np.ndarray:
    return 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.02, count)))


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("score_on", ["train", "test", "all"])
def test_no_bar_after_a_part_has_a_say_in_it_even_for_a_strategy_that_cheats(score_on: str) -> None:
    terms = {"folds": 4, "train": 0.6, "score_on": score_on}
    strategy = search_of(SAMPLE | {"strategy": f"{__name__}:seer", "space": {"x": [1]}}).strategy
    prices = walk(1)
    before = bench(terms, A=frame(prices)).judge(strategy, {})
    # Everything from the third fold's test on is another market.
    split = cut(200, 4, 0.6)[2].train.stop
    other = np.concatenate([prices[:split], walk(2)[split:]])
    after = bench(terms, A=frame(other)).judge(strategy, {})
    trains = [[fold["in_sample"] for fold in each.folds] for each in (before, after)]
    tests = [[fold["out_of_sample"] for fold in each.folds] for each in (before, after)]
    assert trains[0][:3] == trains[1][:3]
    assert trains[0][3] != trains[1][3]
    assert tests[0][:2] == tests[1][:2]
    assert tests[0][2:] != tests[1][2:]
    value = {"train": before.in_sample, "test": before.out_of_sample}.get(score_on)
    assert before.value == value if value is not None else before.value not in (before.in_sample, before.out_of_sample)


@pytest.mark.usefixtures("allowed")
def test_all_symbols_are_cut_at_the_same_times() -> None:
    strategy = search_of(SAMPLE | {"strategy": f"{__name__}:seer", "space": {"x": [1]}}).strategy
    late = frame(walk(2, 120), start=DAY + dt.timedelta(days=80))
    made = bench({"folds": 2, "train": 0.5}, A=frame(walk(1)), LATE=late)
    verdict = made.judge(strategy, {})
    ends = {DAY + dt.timedelta(days=fold.train.stop - 1) for fold in made.folds} | {DAY + dt.timedelta(days=199)}
    assert {each.astype("datetime64[us]").item() for each in looked_at} == ends
    assert [fold["test_from"] for fold in verdict.folds] == ["2020-03-08", "2020-05-13"]
    assert verdict.folds[0]["in_sample"] is not None  # of A alone
    assert verdict.symbols["LATE"]["in_sample"] is not None


def test_without_a_test_there_is_nothing_out_of_sample() -> None:
    row = judged(GRID | {"train": 1, "space": {"fast": [5]}}).iloc[0]
    assert row["out_of_sample"] is None
    assert row["in_sample"] == row["value"]


# A shard


def test_the_row_says_all_that_decides_on_it() -> None:
    row = judged(GRID | {"symbols": ["AAPL", "IBM"], "folds": 2}).loc[3]
    assert (row["study"], row["strategy"], row["objective"], row["direction"]) == (
        *("ma_cross", "ma_cross", "sharpe", "maximize"),
    )
    assert json.loads(row["params"]) == {"fast": 5, "slow": 50, "kind": "ema"} == json.loads(row["strategy_params"])
    assert set(json.loads(row["symbols"])) == {"AAPL", "IBM"}
    assert [fold["fold"] for fold in json.loads(row["folds"])] == [1, 2]
    table = to_table(Optimization.dataset, [tuple(row)])
    assert table.num_rows == 1


def test_runs_that_differ_do_not_replace_each_other_s_trials_and_the_same_ones_do() -> None:
    one = Optimization.check(SAMPLE)
    setups = {
        optimization.setup_of(Optimization.check(SAMPLE | more))
        for more in ({}, {"seed": 1}, {"commission": 0.1}, {"symbols": ["IBM"]}, {"study": "x"})
    }
    assert len(setups) == 4  # the name of a study is a column of its own
    assert optimization.setup_of(json.loads(json.dumps(one))) == optimization.setup_of(one)


@pytest.mark.usefixtures("allowed")
def test_a_trial_whose_strategy_fails_says_which_and_is_not_tried_again() -> None:
    params = Optimization.check(SAMPLE | {"strategy": f"{__name__}:broken", "space": {"x": [1, 2]}})
    with pytest.raises(ItemFailed, match=r"trial 1, \{'x': 1\}: ZeroDivisionError: no way with 1") as failure:
        Optimization(params).run({"key": "trial-00001", "trial": 1, "params": {"x": 1}})
    assert not failure.value.retry


def test_an_unknown_symbol_and_params_that_cannot_be_fail_the_trial() -> None:
    params = Optimization.check(SAMPLE | {"symbols": ["NOPE"]})
    with pytest.raises(ItemFailed, match="'NOPE' is not in the sample"):
        Optimization(params).run({"trial": 0, "params": {"fast": 1}})
    with pytest.raises(ItemFailed, match="99 is not less than slow, 5"):
        Optimization(params).run({"trial": 0, "params": {"fast": 99, "slow": 5}})


@pytest.mark.usefixtures("allowed")
def test_the_shards_of_a_run_share_bars_and_another_run_reads_them_anew(tmp_path: Path) -> None:
    given = HOLD | files(tmp_path, A=[100, 100, 150, 150, 150]) | {"space": {"enter": [0], "leave": [9]}}
    assert judged(given, run_id=7)["value"].item() == pytest.approx(0.5)
    files(tmp_path, A=[100, 100, 200, 200, 200])
    assert judged(given, run_id=7)["value"].item() == pytest.approx(0.5)
    assert judged(given, run_id=8)["value"].item() == pytest.approx(1.0)
    assert judged(given)["value"].item() == pytest.approx(1.0)  # of no run: nothing is kept
    assert len(optimization._benches) == 2


@pytest.mark.usefixtures("allowed")
def test_bars_of_the_parent_s_table_are_known_by_their_content(tmp_path: Path) -> None:
    given = HOLD | {"source": "store", "symbols": ["A"], "space": {"enter": [0], "leave": [9]}}

    def write(name: str, prices: list[float]) -> str:
        table = pa.Table.from_pandas(frame(prices).assign(symbol="A"), preserve_index=False)
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return str(tmp_path / name)

    rise, same, more = [100.0, 100, 150], [100.0, 100, 150], [100.0, 100, 200]
    assert judged(given, input=write("1", rise))["value"].item() == pytest.approx(0.5)
    assert judged(given, input=write("2", same))["value"].item() == pytest.approx(0.5)
    assert len(optimization._benches) == 1
    assert judged(given, input=write("3", more))["value"].item() == pytest.approx(1.0)
    reading = Optimization.reads([{"trial": 0, "params": {}}], Optimization.check(given))
    assert reading is not None
    assert reading.values == ("A",)
    with pytest.raises(ItemFailed, match="bars of a parent"):
        judged(given)


# What is asked of all trials


def test_the_best_the_ranking_and_the_views_come_out_of_the_store(tmp_path: Path) -> None:
    given = GRID | {"folds": 3, "constraints": {"max_drawdown": {"max": 0.55}}, "symbols": ["AAPL", "IBM"]}
    rows = judged(given)
    feasible = rows[rows["feasible"]]
    assert 0 < len(feasible) < len(rows)
    table = with_lineage(
        to_table(Optimization.dataset, list(rows.itertuples(index=False, name=None))),
        run=1, start=0, allocation=1, node="a", saved_at=DAY,
    )  # fmt: skip
    with ResultStore(tmp_path / "results.duckdb") as store:
        store.append([Saved(Optimization.dataset, table, [(1, 0, len(rows), 1, "0", len(rows))])])
        found = {
            name: store.reduce(Optimization.dataset, sql, 1, 1000) for name, sql in Optimization.reductions.items()
        }
        with store.reader() as reading:
            symbols = reading.execute("SELECT count(*), sum(value) FROM optimization_symbols").fetchone()
            folds = reading.execute("SELECT count(*), max(fold) FROM optimization_folds").fetchone()
    (best,) = found["best"]
    assert best["trial"] == feasible["value"].idxmax()
    assert best["value"] == feasible["value"].max()
    ranking = [each["trial"] for each in found["ranking"]]
    assert ranking[: len(feasible)] == list(feasible["value"].sort_values(ascending=False).index)
    assert set(ranking) == set(rows.index)
    assert symbols == (2 * len(rows), pytest.approx(2 * rows["value"].sum()))
    assert folds == (3 * len(rows), 3)
    by_value = {(each["parameter"], each["parameter_value"]): each for each in found["by_value"]}
    assert len(by_value) == 8
    assert by_value["fast", "5"]["trials"] == 4
    for each in found["walk_forward"]:
        candidates = [
            (fold["in_sample"], trial)
            for trial, folds_ in rows["folds"].items()
            for fold in json.loads(folds_)
            if fold["fold"] == each["fold"] and not fold["violation"]
        ]
        assert (each["in_sample"], each["trial"]) == max(candidates, key=lambda pair: (pair[0], -pair[1]))


def test_the_best_of_what_is_to_be_small_is_the_smallest(tmp_path: Path) -> None:
    rows = judged(GRID | {"objective": "max_drawdown"})
    import duckdb

    connection = duckdb.connect()
    connection.register("rows", rows)
    best = connection.execute(Optimization.reductions["best"]).df().iloc[0]
    assert best["value"] == rows["value"].min()


def test_bars_before_the_start_date_warm_up_and_are_not_traded() -> None:
    given = GRID | {"space": {"fast": [10]}, "strategy_params": {"slow": 200}, "train": 1}
    row = judged(given | {"start_date": "2005-01-03", "end_date": "2005-12-30"}).iloc[0]
    fold = json.loads(row["folds"])[0]
    assert (fold["train_from"], fold["last"]) == ("2005-01-03", "2005-12-30")
    backtest = executors.get("backtest")
    params = {name: given[name] for name in ("source", "strategy")} | {"strategy_params": {"fast": 10, "slow": 200}}
    checked = backtest.check(params | {"start_date": "2005-01-03", "end_date": "2005-12-30"})
    table = to_table(backtest.dataset, backtest(checked).run("AAPL"))
    assert row["trades"] == table["trades"][0].as_py() > 0
    assert row["sharpe"] == pytest.approx(table["sharpe"][0].as_py(), abs=1e-12)
    with pytest.raises(ItemFailed, match="no bars from 2014-01-01 on"):
        judged(given | {"start_date": "2014-01-01"})


def test_settings_for_one_strategy_say_nothing_to_another() -> None:
    settings = {"strategy": "ma_cross", "space": {"fast": [5]}, "strategy_params": {"slow": 100}, "commission": 0.1}
    mine = Optimization.merged(settings, {"symbols": ["AAPL"], "source": "sample"})
    assert (mine["space"], mine["strategy_params"]) == ({"fast": [5]}, {"slow": 100})
    other = Optimization.merged(settings, {"strategy": "breakout", "space": {"entry": [20, 30]}})
    assert other == {"strategy": "breakout", "space": {"entry": [20, 30]}, "commission": 0.1}
