"""Backtests: one item is a symbol, or a symbol with its own range of dates or its own parameters of the strategy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nodes import backtesting
from nodes.executors.bars import DATES, FREQ, OverBars, parts, range_of, source_param
from nodes.executors.base import Column, Dataset, Item, ItemFailed, Param, Rows, Variant, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pandas as pd

KEY_LENGTH = 200
OWN = ("key", "params")
"""What an item may have beside what an item over bars has."""
WHOLE = ("trades", "max_drawdown_bars")
"""Metrics that are whole numbers."""
ENGINE = tuple(param.name for param in backtesting.PARAMS)

_KEY = ("symbol", "freq", "strategy", "variant", "start_date", "end_date")
_KEY_SQL = ", ".join(_KEY)
# Braces mean something else to the store, so JSON is taken apart without a structure written out.
_EQUITY_VIEW = f"""
    WITH points AS (
        SELECT {_KEY_SQL},
            unnest(CAST(json_extract(equity_curve, '$.dates') AS TIMESTAMP[])) AS datetime,
            unnest(CAST(json_extract(equity_curve, '$.values') AS DOUBLE[])) AS equity
        FROM {{table}}
    )
    SELECT *, 1 - equity / max(equity) OVER (
        PARTITION BY {_KEY_SQL} ORDER BY datetime ROWS UNBOUNDED PRECEDING
    ) AS drawdown
    FROM points
"""
_TRADE_COLUMNS = {
    "side": "VARCHAR",
    "entry_date": "TIMESTAMP",
    "entry_price": "DOUBLE",
    "exit_date": "TIMESTAMP",
    "exit_price": "DOUBLE",
    "size": "DOUBLE",
    "profit": "DOUBLE",
    "return": "DOUBLE",
    "bars": "BIGINT",
    "costs": "DOUBLE",
    "open": "BOOLEAN",
}
_TRADE_SQL = ", ".join(
    f"CAST(json_extract_string(trade, '$.{name}') AS {kind}) AS \"{name}\"" for name, kind in _TRADE_COLUMNS.items()
)
_TRADES_VIEW = f"""
    WITH trades AS (
        SELECT {_KEY_SQL},
            unnest(CAST(trade_list AS JSON[])) AS trade,
            generate_subscripts(CAST(trade_list AS JSON[]), 1) AS number
        FROM {{table}}
    )
    SELECT {_KEY_SQL}, number, {_TRADE_SQL} FROM trades
"""
_BEST = """
    SELECT symbol, freq, strategy, CAST(json_extract(params, '$.strategy_params') AS VARCHAR) AS strategy_params,
        variant, start_date, end_date, sharpe, total_return, cagr, max_drawdown, trades
    FROM rows ORDER BY sharpe DESC NULLS LAST, total_return DESC, symbol, variant LIMIT 20
"""
_SUMMARY = """
    SELECT strategy, count(*) AS backtests,
        avg(total_return) AS mean_total_return, median(total_return) AS median_total_return,
        count(*) FILTER (WHERE total_return > 0) / count(*) AS profitable,
        avg(cagr) AS mean_cagr, avg(volatility) AS mean_volatility, avg(sharpe) AS mean_sharpe,
        avg(max_drawdown) AS mean_max_drawdown, max(max_drawdown) AS largest_max_drawdown,
        avg(win_rate) AS mean_win_rate, avg(exposure) AS mean_exposure, sum(trades)::BIGINT AS trades
    FROM rows GROUP BY strategy ORDER BY strategy
"""


class Backtest(OverBars):
    type = "backtest"
    title = "Tests a trading strategy on past bars, by symbol"
    item_form = 'A symbol such as AAPL, or {"symbol": "AAPL", "params": {"fast": 5}, "start_date": "2020-01-01"}.'
    source = source_param(store=True)
    params = (
        Param(
            "strategy",
            "string",
            help=f"One of {', '.join(backtesting.strategies())}, or package.module:callable of the setting custom.",
        ),
        Param("strategy_params", "object", {}, "The strategy's own parameters, by name."),
        source,
        FREQ,
        *DATES,
        *backtesting.PARAMS,
        Param("equity_points", "integer", 2000, "Points of the equity curve to keep.", minimum=0, maximum=1_000_000),
        Param("keep_trades", "boolean", True, "Keep the list of trades, not only what is computed of it?"),
    )
    dataset = Dataset(
        table="backtest",
        columns=(
            *(Column(name, "string") for name in _KEY),
            Column("data_source", "string"),
            Column("first_bar", "timestamp"),
            Column("last_bar", "timestamp"),
            Column("bars", "int64"),
            *(Column(name, "int64" if name in WHOLE else "float64") for name in backtesting.METRICS),
            Column("params", "json"),
            Column("equity_curve", "json"),
            Column("trade_list", "json"),
        ),
        key=_KEY,
        views=(("backtest_equity", _EQUITY_VIEW), ("backtest_trades", _TRADES_VIEW)),
    )
    reductions = {"best": _BEST, "summary": _SUMMARY}

    @classmethod
    def variants(cls) -> Sequence[Variant]:
        return [*super().variants(), *backtesting.variants()]

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Beside all others the strategy's own parameters. Raises FieldError, on params.strategy_params.<name> too."""
        checked = super().check(params)
        checked["strategy_params"] = backtesting.strategy(checked["strategy"]).check(checked["strategy_params"])
        backtesting.options(checked)
        return checked

    @classmethod
    def merged(cls, settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings for a strategy's parameters say nothing to a run with another strategy."""
        merged = super().merged(settings, params)
        if "strategy_params" not in params and params.get("strategy") not in (None, settings.get("strategy")):
            merged.pop("strategy_params", None)
        return merged

    @classmethod
    def check_item(cls, item: Item) -> None:
        parts(_place(item))
        if not isinstance(item, dict):
            return
        if not isinstance(item.get("params", {}), dict):
            raise ValueError(f"params of {item['symbol']}: {shown(item['params'])} is not an object")
        key = item.get("key", "key")
        if not isinstance(key, str) or not 0 < len(key) <= KEY_LENGTH or not key.isprintable():
            raise ValueError(f"key of {item['symbol']}: {shown(key)} is not a text of 1 to {KEY_LENGTH} characters")

    @classmethod
    def begin(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[Item]:
        """Items with parameters of their own have these checked, and get a key unless they have one."""
        strategy = backtesting.strategy(params["strategy"])
        begun = []
        for number, item in enumerate(items):
            if isinstance(item, dict) and item.get("params"):
                strategy.check(_own(item, params), f"items[{number}].params")
                item = {"key": _key(item), **item}
            begun.append(item)
        return begun

    @classmethod
    def symbols_of(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[str]:
        return [parts(_place(item))[0] for item in items]

    def run(self, item: Item) -> Rows:
        try:
            symbol, start, end = range_of(_place(item), self.given)
            strategy = backtesting.strategy(self.given["strategy"])
            own = strategy.check(_own(item, self.given))
        except ValueError as error:
            raise ItemFailed(str(error)) from None
        except FieldError as error:
            # Checked when it was submitted: this node's allow-list or version differs from the parent's.
            raise ItemFailed(f"{shown(item)}: {error}", retry=True) from None
        # Bars before the first date are not traded, but indicators have their history.
        bars = self.bars(symbol, None, end)
        first, stop = backtesting.window(bars, start, end)
        self._check_enough(symbol, strategy, own, first, stop)
        try:
            positions = strategy.positions(bars, own)
            result = backtesting.run(bars, positions, start=first, stop=stop, **backtesting.options(self.given))
        except ImportError as error:
            raise ItemFailed(f"{symbol}: {strategy.name} cannot be run on this node: {error}", retry=True) from None
        except ValueError as error:
            raise ItemFailed(f"{symbol}: {error}") from None
        settings = {"strategy_params": own} | {name: self.given[name] for name in ENGINE if name in self.given}
        return [
            (
                symbol,
                self.freq,
                strategy.name,
                variant(settings),
                start.isoformat() if start else "",
                end.isoformat() if end else "",
                self.provider.name,
                bars["datetime"].iloc[first].to_pydatetime(),
                bars["datetime"].iloc[stop - 1].to_pydatetime(),
                stop - first,
                *(result.metrics[name] for name in backtesting.METRICS),
                _json(settings),
                self._curve(result.equity),
                _json([_short(trade) for trade in result.trades]) if self.given["keep_trades"] else None,
            )
        ]

    def _check_enough(
        self, symbol: str, strategy: backtesting.Strategy, own: Mapping[str, Any], first: int, stop: int
    ) -> None:
        """Raises ItemFailed where there are too few bars for any trade."""
        if first >= stop:
            raise ItemFailed(f"{symbol}: no bars in the range; there are {stop} before it")
        needs = max(2, strategy.least_bars(own))
        if self.given["sizing"] == "volatility":
            needs = max(needs, self.given["sizing_window"] + 2)
        if stop < needs:
            told = ", ".join(f"{name}={value}" for name, value in own.items()) or "any parameters"
            raise ItemFailed(f"{symbol}: {stop} bars; {strategy.name} with {told} needs {needs} at least")

    def _curve(self, equity: pd.Series[float]) -> str | None:
        """``{"dates": […], "values": […]}``: so many points, evenly spread over the bars, the last one among them."""
        import numpy as np

        from nodes.backtesting.engine import told

        points = min(self.given["equity_points"], len(equity))
        if not points:
            return None
        kept = equity.iloc[np.linspace(len(equity) - 1, 0, points).round().astype(int)[::-1]]
        dates = [told(date) for date in kept.index.to_numpy()]
        return _json({"dates": dates, "values": [float(f"{value:.10g}") for value in kept.tolist()]})


def variant(settings: Mapping[str, Any]) -> str:
    """What tells two sets of parameters of one strategy apart, in 12 characters; the same for the same on any node."""
    return hashlib.sha256(_json(settings, sort_keys=True).encode()).hexdigest()[:12]


def _place(item: Item) -> Item:
    """``item`` without what only a backtest's has: a symbol, or an object with it and dates."""
    return {name: value for name, value in item.items() if name not in OWN} if isinstance(item, dict) else item


def _own(item: Item, params: Mapping[str, Any]) -> dict[str, Any]:
    """The strategy's parameters for this item: the run's, and the item's over them."""
    return {**params["strategy_params"], **(item.get("params", {}) if isinstance(item, dict) else {})}


def _key(item: Mapping[str, Any]) -> str:
    """The symbol with the item's own dates and parameters; what is too long for a name, by its variant."""
    words = [*(item[name] for name in ("start_date", "end_date") if item.get(name))]
    words += [f"{name}={value}" for name, value in item["params"].items()]
    key = " ".join([item["symbol"], *words])
    return key if len(key) <= KEY_LENGTH and key.isprintable() else f"{item['symbol']} {variant(dict(item))}"


def _short(trade: Mapping[str, Any]) -> dict[str, Any]:
    """Its numbers without what rounding left in their last digits, which would be half of the text."""
    return {name: float(f"{value:.12g}") if isinstance(value, float) else value for name, value in trade.items()}


def _json(value: Any, **how: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, **how)
