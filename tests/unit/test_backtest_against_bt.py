"""Agreement with bt (github.com/pmorissette/bt, MIT), an independent backtester, on the real bars of the sample.

Stated tolerance: equity and metrics to 1e-9, relatively; 1e-14 is what is seen. bt trades at closes only and knows no
stretch from decision to order, so its target weights are our exposures, one bar later, and ours fill at next_close. It
sets weights on the bars where they change, as the engine does, and trades fractions of shares. bt's curve begins one
day before the bars. With commission the two differ where a position is turned round: there bt sizes the order by the
equity before its costs and the engine by what costs leave, so that commissions are compared for long positions.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nodes import backtesting
from nodes.backtesting import Costs
from nodes.providers.sample import Sample

TOLERANCE = 1e-9
CASH = 100_000.0
RULES = {
    "buy_and_hold": {},
    "ma_cross": {"fast": 20, "slow": 100},
    "breakout": {"entry": 40, "exit": 20},
}


def bars_of(symbol):
    return Sample({}).bars(symbol, "D", None, None).reset_index(drop=True)


def exposures(bars, rule, short):
    chosen = backtesting.strategy(rule)
    found = chosen.positions(bars, chosen.check(RULES[rule]))
    return found if short else np.maximum(found, 0.0)


def library():
    """Loaded by whoever compares: that takes two seconds, and every process of the tests collects this file."""
    return pytest.importorskip("bt", reason="bt is not installed: pip install -r requirements-dev.txt")


def by_bt(bars, positions, commission):
    """bt's account over the same bars: its strategy, which has values and transactions."""
    bt = library()
    prices = bars.set_index("datetime")["close"].to_frame("one")
    weights = pd.Series(positions, index=prices.index).shift(1).fillna(0.0)
    changes = weights[weights.diff().fillna(weights) != 0].to_frame("one")
    test = bt.Backtest(
        bt.Strategy("theirs", [bt.algos.WeighTarget(changes), bt.algos.Rebalance()]),
        prices,
        initial_capital=CASH,
        commissions=lambda shares, price: abs(shares) * price * commission / 100,
        integer_positions=False,
        progress_bar=False,
    )
    test.run()
    return test.strategy


@pytest.mark.parametrize("symbol", ["AAPL", "IBM", "MSFT", "GOOG", "FB"])
@pytest.mark.parametrize(
    ("rule", "short", "commission"),
    [
        ("buy_and_hold", False, 0.0),
        ("buy_and_hold", False, 0.1),
        ("ma_cross", False, 0.0),
        ("ma_cross", False, 0.1),
        ("ma_cross", True, 0.0),
        ("breakout", True, 0.0),
    ],
)
def test_the_equity_is_bt_s_at_every_bar(symbol, rule, short, commission):
    bars = bars_of(symbol)
    positions = exposures(bars, rule, short)
    theirs = by_bt(bars, positions, commission).values.iloc[1:]
    ours = backtesting.run(
        bars, positions, cash=CASH, fill="next_close", short=short, costs=Costs(commission=commission)
    ).equity
    assert list(ours.index) == list(theirs.index)
    assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), rel=TOLERANCE)
    assert abs(ours.iloc[-1] / CASH - 1) > 0.001  # something was traded


def test_the_metrics_are_those_that_bt_computes():
    bars = bars_of("AAPL")
    positions = exposures(bars, "ma_cross", short=False)
    account = by_bt(bars, positions, 0.1)
    theirs = library().ffn.PerformanceStats(account.values.iloc[1:])
    ours = backtesting.run(bars, positions, cash=CASH, fill="next_close", costs=Costs(commission=0.1)).metrics
    assert ours["total_return"] == pytest.approx(theirs.total_return, rel=TOLERANCE)
    assert ours["cagr"] == pytest.approx(theirs.cagr, rel=TOLERANCE)
    assert ours["volatility"] == pytest.approx(theirs.daily_vol, rel=TOLERANCE)
    assert ours["sharpe"] == pytest.approx(theirs.daily_sharpe, rel=TOLERANCE)
    assert ours["sortino"] == pytest.approx(theirs.daily_sortino, rel=TOLERANCE)
    assert ours["calmar"] == pytest.approx(theirs.calmar, rel=TOLERANCE)
    assert ours["max_drawdown"] == pytest.approx(-theirs.max_drawdown, rel=TOLERANCE)  # bt's is negative


def test_the_trades_are_bt_s_transactions():
    bars = bars_of("IBM")
    positions = exposures(bars, "ma_cross", short=False)
    theirs = by_bt(bars, positions, 0.1).get_transactions().reset_index()
    ours = backtesting.run(bars, positions, cash=CASH, fill="next_close", costs=Costs(commission=0.1)).trades
    ends = []
    for trade in ours:
        ends.append((trade["entry_date"], trade["entry_price"], trade["size"]))
        if not trade["open"]:
            ends.append((trade["exit_date"], trade["exit_price"], -trade["size"]))
    assert [date for date, _, _ in ends] == [str(date.date()) for date in theirs["Date"]]
    assert [price for _, price, _ in ends] == pytest.approx(theirs["price"].tolist())
    assert [size for _, _, size in ends] == pytest.approx(theirs["quantity"].tolist())
