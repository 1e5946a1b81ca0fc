"""The terms of a backtest: costs, how large positions are, the parameters that say so, and the metrics by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nodes.executors.base import Param
from nodes.protocol import FieldError

SIZINGS = ("all_in", "percent", "fixed", "volatility")
FILLS = ("next_open", "next_close")


@dataclass(frozen=True)
class Costs:
    """``commission``: per cent of an order's value, and at least ``commission_min`` an order, in the money of the bars.
    ``slippage``: per cent of the price by which orders fill worse than it."""

    commission: float = 0.0
    commission_min: float = 0.0
    slippage: float = 0.0


@dataclass(frozen=True)
class Sizing:
    """How large the position is that an exposure of 1 stands for, settled whenever the exposure changes.

    ``kind``: all_in, all of the equity; percent, ``percent`` of it; fixed, ``amount`` of money, as far as the equity
    goes; volatility, so much of the equity that it would fluctuate by ``volatility`` per cent a year, judged by the
    last ``window`` returns of the bars, and at most all of it.
    ``lot``: shares come in multiples of it, rounded towards none; 0: any fraction of a share.
    """

    kind: str = "all_in"
    percent: float = 100.0
    amount: float = 10_000.0
    volatility: float = 15.0
    window: int = 20
    lot: float = 0.0


PARAMS = (
    Param(
        "long_short", "boolean", False, "Whether a strategy may also be short; otherwise its shorts are no position."
    ),
    Param("fill", "string", "next_open", "Price of the bar after the signal at which orders fill.", choices=FILLS),
    Param("cash", "number", 100_000.0, "Money at the beginning.", minimum=0.01, maximum=1e15),
    Param("commission", "number", 0.0, "Commission, in per cent of an order's value.", minimum=0, maximum=10),
    Param("commission_min", "number", 0.0, "Least commission of an order, in money.", minimum=0, maximum=1e9),
    Param("slippage", "number", 0.0, "Orders fill so many per cent worse than the price.", minimum=0, maximum=10),
    Param("sizing", "string", "all_in", "How large positions are: " + ", ".join(SIZINGS) + ".", choices=SIZINGS),
    Param("sizing_percent", "number", 100.0, "percent: share of the equity.", minimum=0.01, maximum=100),
    Param("sizing_amount", "number", 10_000.0, "fixed: money in a position.", minimum=0.01, maximum=1e15),
    Param("sizing_volatility", "number", 15.0, "volatility: target, in per cent a year.", minimum=0.01, maximum=1000),
    Param("sizing_window", "integer", 20, "volatility: bars by which it is judged.", minimum=2, maximum=10_000),
    Param("lot", "number", 0.0, "Shares are traded in multiples of this; 0: any fraction.", minimum=0, maximum=1e9),
    Param(
        "risk_free",
        "number",
        0.0,
        "Riskless return for Sharpe and Sortino, in per cent a year.",
        minimum=-50,
        maximum=100,
    ),
    Param("bars_a_year", "number", None, "Bars in a year; without it, by freq.", minimum=1, maximum=1e7),
)
"""Beside the bars and the strategy; ``options`` turns checked ones into what ``run`` takes."""

BARS_A_YEAR = {
    "1min": 252 * 390.0,
    "5min": 252 * 78.0,
    "15min": 252 * 26.0,
    "30min": 252 * 13.0,
    "60min": 252 * 6.5,
    "D": 252.0,
    "W": 52.0,
    "M": 12.0,
}
"""By freq, for 252 days of 6.5 hours; other markets say ``bars_a_year``."""

METRICS: Mapping[str, str] = {
    "total_return": "Final equity over the cash at the beginning, less 1.",
    "cagr": "Return a year, compounded, by calendar time.",
    "volatility": "Standard deviation of the bars' returns, a year.",
    "sharpe": "Mean return above the riskless one over its standard deviation, a year.",
    "sortino": "Mean return above the riskless one over its downside deviation, a year.",
    "calmar": "cagr over max_drawdown.",
    "max_drawdown": "Largest fall of the equity below its highest point before, as a share of that: 0.25 is a quarter.",
    "max_drawdown_bars": "Bars from the high before that fall until it was reached again, or to the end.",
    "win_rate": "Share of the closed trades that brought a profit.",
    "profit_factor": "Profits of the closed trades over the losses of the others.",
    "exposure": "Share of the bars at whose end there was a position.",
    "trades": "How many trades; one that is still open counts.",
    "costs": "Commission and slippage, in money.",
    "final_equity": "Cash and the position's value at the end.",
}
"""Name -> what it is. Fractions, not per cent. None where it cannot be: the Sharpe ratio of constant prices, say."""

SMALLER_IS_BETTER = frozenset({"volatility", "max_drawdown", "max_drawdown_bars", "costs"})


def options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``run`` from checked params, which have PARAMS' names and ``freq``.

    Raises FieldError where ``freq`` does not say how many bars a year has.
    """
    given = {param.name: params.get(param.name, param.default) for param in PARAMS}
    yearly = given["bars_a_year"] or BARS_A_YEAR.get(params["freq"])
    if yearly is None:
        raise FieldError("params.bars_a_year", f"is required with freq {params['freq']!r}")
    return {
        "costs": Costs(given["commission"], given["commission_min"], given["slippage"]),
        "sizing": Sizing(
            given["sizing"],
            given["sizing_percent"],
            given["sizing_amount"],
            given["sizing_volatility"],
            given["sizing_window"],
            given["lot"],
        ),
        "cash": given["cash"],
        "fill": given["fill"],
        "short": given["long_short"],
        "bars_a_year": yearly,
        "risk_free": given["risk_free"],
    }
