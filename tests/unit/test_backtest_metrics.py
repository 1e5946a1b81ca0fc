"""Every metric against a small series worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nodes import backtesting
from nodes.backtesting.measures import measure


def measured(equity, **how):
    held = np.ones(len(equity), dtype=bool)
    usual: dict[str, Any] = {
        "years": 1.0,
        "held": held,
        "profits": [],
        "trades": 0,
        "costs": 0.0,
        "bars_a_year": 4.0,
        "risk_free": 0.0,
    }
    return measure(np.array(equity, dtype=float), **(usual | how))


CURVE = [100, 110, 99, 99, 108.9]
"""Returns of +10 %, -10 %, 0 and +10 %: mean 0.025, deviation root(0.0275 / 3) = 0.0957427."""


def test_each_has_its_name_and_no_other():
    assert list(measured(CURVE)) == list(backtesting.METRICS)


def test_returns():
    metrics = measured(CURVE, years=0.5)
    assert metrics["final_equity"] == 108.9
    assert metrics["total_return"] == pytest.approx(0.089)
    assert metrics["cagr"] == pytest.approx(1.089**2 - 1)


def test_volatility_is_the_deviation_of_a_sample_times_the_root_of_the_bars_in_a_year():
    assert measured(CURVE)["volatility"] == pytest.approx(2 * 0.0957427, abs=1e-6)


def test_sharpe():
    assert measured(CURVE)["sharpe"] == pytest.approx(0.025 / 0.0957427 * 2, abs=1e-5)
    # 4.060401 per cent a year are 1 per cent a bar.
    assert measured(CURVE, risk_free=0.04060401)["sharpe"] == pytest.approx(0.015 / 0.0957427 * 2, abs=1e-5)


def test_sortino_counts_what_is_below_the_target_and_divides_by_all():
    # root(0.1 ** 2 / 4) = 0.05
    assert measured(CURVE)["sortino"] == pytest.approx(0.025 / 0.05 * 2)
    # Below 1 per cent: -11 and -1 per cent.
    downside = math.sqrt((0.11**2 + 0.01**2) / 4)
    assert measured(CURVE, risk_free=0.04060401)["sortino"] == pytest.approx(0.015 / downside * 2, rel=1e-6)


def test_drawdown_and_its_length_to_the_end():
    metrics = measured(CURVE)
    assert metrics["max_drawdown"] == pytest.approx(0.1)
    assert metrics["max_drawdown_bars"] == 3  # from 110, which is not reached again
    assert metrics["calmar"] == pytest.approx(0.89)


def test_drawdown_and_its_length_to_the_recovery():
    # 20 of 120 is more than 5 of 130, whichever lasts longer; 120 is reached again two bars later.
    metrics = measured([100, 120, 100, 125, 130, 125, 126, 127, 128])
    assert metrics["max_drawdown"] == pytest.approx(1 / 6)
    assert metrics["max_drawdown_bars"] == 2
    # A high that lasts: the fall is counted from its first bar.
    assert measured([100, 120, 120, 90, 120])["max_drawdown_bars"] == 3
    # Reached again is enough; it need not be passed.
    assert measured([100, 120, 90, 120, 121])["max_drawdown_bars"] == 2


def test_trades():
    metrics = measured(CURVE, profits=[30.0, -10.0, 0.0, 10.0, -10.0], trades=6, costs=1.5)
    assert metrics["win_rate"] == pytest.approx(0.4)
    assert metrics["profit_factor"] == pytest.approx(2.0)
    assert metrics["trades"] == 6
    assert metrics["costs"] == 1.5
    assert measured(CURVE, profits=[5.0])["profit_factor"] is None
    assert measured(CURVE, profits=[-5.0])["profit_factor"] == 0


def test_exposure_is_the_share_of_bars_after_the_first():
    assert measured(CURVE, held=np.array([False, True, True, False, False]))["exposure"] == 0.5


@pytest.mark.parametrize(
    "equity",
    [[100], [100, 100], [100, 0], [100, 0, 0, 0], [100, 50, 0], [1e-300, 1e300], [100, 101], [1e15] * 5],
)
@pytest.mark.parametrize("years", [0.0, 1e-9, 1.0])
def test_nothing_is_infinite_or_undefined(equity, years):
    for name, value in measured(equity, years=years, risk_free=-0.5).items():
        assert value is None or math.isfinite(value), name


def test_constant_growth_has_no_deviation_to_divide_by():
    metrics = measured([100 * 1.01**bar for bar in range(50)])
    assert metrics["sharpe"] is None
    assert metrics["sortino"] is None
    assert metrics["calmar"] is None
    assert metrics["total_return"] == pytest.approx(1.01**49 - 1)


def test_after_a_total_loss_there_are_no_returns():
    # -100 % once, then three times nothing: mean -0.25, not undefined.
    metrics = measured([100, 0, 0, 0, 0])
    assert metrics["volatility"] == pytest.approx(0.5 * 2)
    assert metrics["sharpe"] == pytest.approx(-0.25 / 0.5 * 2)
    assert metrics["cagr"] == -1
    assert metrics["calmar"] == -1
