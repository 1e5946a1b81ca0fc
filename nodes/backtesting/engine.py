"""The engine: target exposures become orders, orders a curve of equity. Imports numpy: for workers.

Work is done per order, not per bar: between two orders cash and shares stay as they are, so the curve is one product
of arrays. What is computed of it is in ``measures``.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nodes.backtesting import measures
from nodes.backtesting.terms import Costs, Sizing

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_FRACTION = 1e-9
"""Of a lot: so much a number of lots may be short of a whole one by rounding."""


class Fill(NamedTuple):
    """One order as it was filled; ``held`` and ``cash`` are what there is after it, ``slipped`` and ``fee`` money."""

    bar: int
    bought: float
    price: float
    fee: float
    slipped: float
    held: float
    cash: float


@dataclass
class Trade:
    """From no position to none, or from a long one to a short one; bought and sold in one order or several."""

    side: int
    first: int
    last: int = -1
    """Bar at which it ended; -1: it has not."""
    entered: float = 0.0
    entered_value: float = 0.0
    left: float = 0.0
    left_value: float = 0.0
    fees: float = 0.0
    slipped: float = 0.0
    profit: float = 0.0

    def enter(self, shares: float, order: Fill) -> None:
        self.entered += shares
        self.entered_value += shares * order.price
        self._pay(shares, order)

    def leave(self, shares: float, order: Fill) -> None:
        self.left += shares
        self.left_value += shares * order.price
        self._pay(shares, order)

    def settle(self, price: float) -> None:
        """Its profit, what is left of it valued at ``price``."""
        value = self.left_value + (self.entered - self.left) * price if self.last < 0 else self.left_value
        self.profit = self.side * (value - self.entered_value) - self.fees

    def _pay(self, shares: float, order: Fill) -> None:
        part = shares / abs(order.bought)  # an order that goes through 0 is shared by two trades
        self.fees += part * order.fee
        self.slipped += part * order.slipped


@dataclass
class Result:
    """``metrics``: by the names of METRICS; None where a metric has no value."""

    metrics: dict[str, float | None]
    _dates: NDArray[np.datetime64] | None = None
    _equity: Floats | None = None
    _trades: list[Trade] = field(default_factory=list)

    @cached_property
    def equity(self) -> pd.Series[float]:
        """Cash and the position's value at the close of each bar, by its datetime; it begins with the bar on which the
        first exposure was decided, when there is only cash."""
        import pandas as pd

        if self._equity is None or self._dates is None:
            return pd.Series(dtype="float64")
        return pd.Series(self._equity, index=pd.DatetimeIndex(self._dates, name="datetime"), name="equity")

    @cached_property
    def trades(self) -> list[dict[str, Any]]:
        """Oldest first, as plain JSON: side (long, short), entry_date, entry_price, exit_date, exit_price (averages,
        slippage included), size (shares), profit (money, after all costs), return (of the value at entry), bars (at
        whose close it was held), costs (money), open. One that is open has no exit, and its profit is as of the end."""
        if self._dates is None:
            return []
        dates = self._dates
        return [_told(trade, dates) for trade in self._trades]


def run(
    bars: pd.DataFrame,
    positions: Floats,
    *,
    costs: Costs,
    sizing: Sizing,
    cash: float,
    fill: str,
    short: bool,
    start: int,
    stop: int | None,
    bars_a_year: float,
    risk_free: float,
    detail: bool,
) -> Result:
    """See ``nodes.backtesting.run``."""
    stop = len(bars) if stop is None else min(stop, len(bars))
    if not 0 <= start < stop:
        raise ValueError(f"no bars from number {start} to {stop}")
    # What is decided at its end is traded on the next bar, the first one of the range where there is one before it.
    base = max(start - 1, 0)
    close = bars["close"].to_numpy(np.float64)
    prices = close if fill == "next_close" else bars["open"].to_numpy(np.float64)
    _check_prices(close[base:stop])
    _check_prices(prices[base:stop])
    targets = _targets(positions, close, sizing, short, bars_a_year, slice(base, stop))
    close, prices = close[base:stop], prices[base:stop]
    fills, ruin = _fills(targets, prices, costs, sizing, cash)
    held, equity, ruin = _curve(fills, ruin, close, cash)
    trades = _trades(fills, ruin, float(close[-1]))
    dates = bars["datetime"].to_numpy()[base:stop]
    metrics = measures.measure(
        equity,
        years=float((dates[-1] - dates[0]) / np.timedelta64(1, "s")) / measures.YEAR_SECONDS,
        held=held,
        profits=[trade.profit for trade in trades if trade.last >= 0],
        trades=len(trades),
        costs=sum(trade.fees + trade.slipped for trade in trades),
        bars_a_year=bars_a_year,
        risk_free=risk_free / 100,
    )
    return Result(metrics, dates, equity, trades) if detail else Result(metrics)


def window(bars: pd.DataFrame, start: dt.date | None, end: dt.date | None) -> tuple[int, int]:
    """See ``nodes.backtesting.window``."""
    days = bars["datetime"].to_numpy().astype("datetime64[D]")
    first = 0 if start is None else int(np.searchsorted(days, np.datetime64(start)))
    after = len(days) if end is None else int(np.searchsorted(days, np.datetime64(end), side="right"))
    return first, after


def _check_prices(prices: Floats) -> None:
    if not (prices.min() > 0 and prices.max() < np.inf):
        bad = prices[~((prices > 0) & (prices < np.inf))][0]
        raise ValueError(f"a price is {bad}; positions need prices above 0")


def _targets(positions: Floats, close: Floats, sizing: Sizing, short: bool, bars_a_year: float, part: slice) -> Floats:
    """The share of the equity that each exposure in ``part`` stands for, before the limit that ``fixed`` sets."""
    positions = np.asarray(positions, dtype=np.float64)
    if positions.shape != close.shape:
        raise ValueError(f"{positions.size} exposures for {close.size} bars")
    # Written so that NaN fails, too.
    if not (positions.min() >= -1 and positions.max() <= 1):
        raise ValueError("an exposure is not a number from -1 to 1")
    positions = positions[part] if short else np.maximum(positions[part], 0.0)
    if sizing.kind == "percent":
        return positions * (sizing.percent / 100)
    if sizing.kind == "volatility":
        return _steady(positions, _calm(close, sizing, bars_a_year)[part])
    return positions


def _calm(close: Floats, sizing: Sizing, bars_a_year: float) -> Floats:
    """Target volatility over that of the last ``window`` returns, at most 1; NaN where there are fewer."""
    share = np.full(len(close), np.nan)
    if len(close) > sizing.window:
        with np.errstate(all="ignore"):  # prices that stand still: as much as there is
            returns = close[1:] / close[:-1] - 1
            each = np.lib.stride_tricks.sliding_window_view(returns, sizing.window).std(axis=1, ddof=1)
            share[sizing.window :] = np.minimum(sizing.volatility / 100 / (each * np.sqrt(bars_a_year)), 1.0)
    return share


def _steady(positions: Floats, share: Floats) -> Floats:
    """``positions`` times the ``share`` at the bar where each of them began; none while the share is unknown."""
    positions = np.where(np.isnan(share), 0.0, positions)
    began = np.flatnonzero(np.diff(positions, prepend=np.nan))
    lengths = np.diff(began, append=len(positions))
    return np.repeat(positions[began] * np.nan_to_num(share[began]), lengths)


def _fills(targets: Floats, prices: Floats, costs: Costs, sizing: Sizing, cash: float) -> tuple[list[Fill], int | None]:
    """An order wherever the target changes, filled on the bar after; and the bar whose price left nothing, if any."""
    changed = np.flatnonzero(np.diff(targets[:-1], prepend=0.0))
    fills: list[Fill] = []
    held = 0.0
    slip, rate, least = costs.slippage / 100, costs.commission / 100, costs.commission_min
    for bar, target, price in zip(
        (changed + 1).tolist(), targets[changed].tolist(), prices[changed + 1].tolist(), strict=True
    ):
        equity = cash + held * price
        if equity <= 0:
            return fills, bar
        wanted = _wanted(target, held, equity, price, costs, sizing)
        bought = wanted - held
        if not bought:
            continue
        paid = price * (1 + slip) if bought > 0 else price * (1 - slip)
        fee = max(rate * abs(bought) * paid, least)
        cash -= bought * paid + fee
        if not wanted and cash < 0:
            # The least commission would take more than there is.
            fee, cash = fee + cash, 0.0
        held = wanted
        fills.append(Fill(bar, bought, paid, fee, slip * price * abs(bought), held, cash))
    return fills, None


def _wanted(target: float, held: float, equity: float, price: float, costs: Costs, sizing: Sizing) -> float:
    """Shares to hold so that their value at ``price`` is the share ``target`` of the equity that costs leave."""
    if not target:
        return 0.0
    if sizing.kind == "fixed":
        side = 1.0 if target > 0 else -1.0
        most = abs(_share(side, held, equity, price, costs))
        wanted = side * min(abs(target) * sizing.amount / price, most)
    else:
        wanted = _share(target, held, equity, price, costs)
    if not abs(wanted) < np.inf:
        raise ValueError(f"at a price of {price} there are more shares than a number can hold")
    if sizing.lot:
        lots = abs(wanted) / sizing.lot
        whole = float(int(lots + LEAST_FRACTION)) * sizing.lot
        wanted = whole if wanted > 0 else -whole
    return wanted


def _share(target: float, held: float, equity: float, price: float, costs: Costs) -> float:
    """The number of shares w with ``w * price = target * (equity - costs of getting from held to w)``.

    Bought from nothing with a target of 1, that spends all cash, costs included, to the last cent.
    """
    slip, rate, least = costs.slippage / 100, costs.commission / 100, costs.commission_min
    for sign in (1.0, -1.0):
        # Costs are `per` for each unit of money traded; linear in w, so the equation has one solution on either side.
        paid = 1 + sign * slip
        per = slip + rate * paid
        wanted = target * (equity + sign * held * price * per) / (price * (1 + sign * target * per))
        if rate * abs(wanted - held) * price * paid < least:
            left = max(equity - least, 0.0)
            wanted = target * (left + sign * held * price * slip) / (price * (1 + sign * target * slip))
        if sign * (wanted - held) > 0:
            return wanted
    return held  # neither buying nor selling brings it nearer than the costs take it away


def _curve(
    fills: list[Fill], ruin: int | None, close: Floats, cash: float
) -> tuple[NDArray[np.bool_], Floats, int | None]:
    """Whether there is a position, and the equity, at each close; and the bar at which nothing was left, if any."""
    lengths = np.diff([0, *(each.bar for each in fills), len(close)])
    shares = np.repeat([0.0, *(each.held for each in fills)], lengths)
    with np.errstate(over="ignore", invalid="ignore"):
        equity = np.repeat([cash, *(each.cash for each in fills)], lengths) + shares * close
    if not np.isfinite(equity).all():
        raise ValueError("the equity is more than a number can hold")
    held = shares != 0
    lost = np.flatnonzero(equity <= 0)
    if len(lost):
        ruin = int(lost[0]) if ruin is None else min(ruin, int(lost[0]))
    if ruin is not None:
        equity[ruin:] = 0.0
        held[ruin:] = False
    return held, equity, ruin


def _trades(fills: list[Fill], ruin: int | None, price: float) -> list[Trade]:
    """The orders by the trade they belong to; one that goes through 0 belongs to two.

    ``price``: what a position that is still open is valued at. ``ruin``: the bar at which it was taken away.
    """
    trades: list[Trade] = []
    held = cash = 0.0
    for order in fills:
        if ruin is not None and order.bar > ruin:
            break
        size = abs(order.bought)
        leaving = min(size, abs(held)) if held * order.bought < 0 else 0.0
        crosses = held * order.held <= 0
        if leaving:
            trades[-1].leave(leaving, order)
            if crosses:
                trades[-1].last = order.bar
        if size > leaving:
            if crosses:
                trades.append(Trade(1 if order.held > 0 else -1, order.bar))
            trades[-1].enter(size - leaving, order)
        held, cash = order.held, order.cash
    if ruin is not None and held:
        # At the price at which nothing is left; what it is beyond that is somebody else's loss.
        trades[-1].leave(abs(held), Fill(ruin, -held, -cash / held, 0.0, 0.0, 0.0, 0.0))
        trades[-1].last = ruin
    for trade in trades:
        trade.settle(price)
    return trades


def _told(trade: Trade, dates: NDArray[np.datetime64]) -> dict[str, Any]:
    """``trade`` as plain JSON; ``dates`` by number of bar."""
    ended = trade.last >= 0
    return {
        "side": "long" if trade.side > 0 else "short",
        "entry_date": told(dates[trade.first]),
        "entry_price": trade.entered_value / trade.entered,
        "exit_date": told(dates[trade.last]) if ended else None,
        "exit_price": trade.left_value / trade.left if ended else None,
        "size": trade.entered,
        "profit": trade.profit,
        "return": trade.profit / trade.entered_value,
        "bars": (trade.last if ended else len(dates)) - trade.first,
        "costs": trade.fees + trade.slipped,
        "open": not ended,
    }


def told(date: np.datetime64) -> str:
    """ISO 8601 to the second, without a midnight's zeros."""
    return str(np.datetime_as_string(date, "s")).removesuffix("T00:00:00")
