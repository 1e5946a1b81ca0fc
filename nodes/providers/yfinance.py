"""Bars of Yahoo Finance through the package yfinance: most of the world's exchanges, indices, currencies, futures.

The package opens connections of its own, to Yahoo's hosts only; see docs/sources-of-bars.md.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nodes import surroundings
from nodes.executors.base import ItemFailed, Param, shown
from nodes.providers.base import Provider, between, nothing

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "yfinance==1.7.0"
INTERVALS = {
    "1min": "1m",
    "5min": "5m",
    "15min": "15m",
    "30min": "30m",
    "60min": "1h",
    "D": "1d",
    "W": "1wk",
    "M": "1mo",
}
LONG = ("D", "W", "M")
SECONDS = 30
FIRST, LAST = dt.date(1900, 1, 1), dt.date(2200, 1, 1)
"""Beyond these Yahoo has nothing, and Unix times would leave the range of its parameters."""
OURS = ("open", "high", "low", "close", "volume")

# It becomes a part of an address: nothing that could end the path.
_SYMBOL = re.compile(r"[A-Za-z0-9^][A-Za-z0-9.^=&_-]{0,31}")
UNKNOWN = "{!r} is not known to Yahoo, or no longer traded"
_NOTHING = "data doesn't exist"
# Of reasons that Yahoo gives: these will be given again.
_LASTING = ("not found", "no data found", "delisted", "invalid", "not available", "must be within")


class YFinance(Provider):
    """Intraday bars are named by their beginning, in UTC; longer ones by the exchange's date, of a week its Monday."""

    name = "yfinance"
    freqs = tuple(INTERVALS)
    params = (
        Param(
            "auto_adjust",
            "boolean",
            False,
            "Prices adjusted for dividends, too; Yahoo's prices are always adjusted for splits.",
        ),
    )

    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        import pandas as pd

        if _SYMBOL.fullmatch(symbol) is None:
            raise ItemFailed(f"{shown(symbol)} is not a symbol of Yahoo's, such as AAPL, 0700.HK, ^GSPC or EURUSD=X")
        first, last = _whole(freq, start, end)
        history = _history(
            symbol,
            interval=INTERVALS[freq],
            # Without a start it would take a month; "max" is as much as Yahoo gives of the interval.
            **({"start": first.isoformat()} if first else {"period": "max"}),
            end=None if last is None else (last + dt.timedelta(days=1)).isoformat(),
            auto_adjust=self.given.get("auto_adjust", False),
            actions=False,
            # Bars without a price are counted and named by whoever takes them.
            keepna=True,
            timeout=SECONDS,
        )
        if history is None or history.empty:
            return nothing()
        times = history.index if freq in LONG else history.index.tz_convert("UTC")
        bars = {"datetime": times.tz_localize(None).astype("datetime64[us]")}
        bars |= {name: history[name.capitalize()].to_numpy("float64") for name in OURS}
        return between(pd.DataFrame(bars), start, end)


def _whole(freq: str, start: dt.date | None, end: dt.date | None) -> tuple[dt.date | None, dt.date | None]:
    """The days to ask for: whole weeks and months, and no more than Yahoo can be asked for."""
    from nodes.providers.resampling import asked

    first, last = asked(freq, start, end)
    if first is not None and freq == "W":
        first = max(first, FIRST)
        first -= dt.timedelta(days=first.weekday())
    if first is not None and freq == "M":
        first = first.replace(day=1)
    bounds = [None if day is None else min(max(day, FIRST), LAST) for day in (first, last)]
    return bounds[0], bounds[1]


def _package() -> Any:
    """Raises ItemFailed where it is not installed."""
    if find_spec("yfinance") is None:
        # Another node may have the package, so another attempt may succeed.
        raise ItemFailed(f"source 'yfinance' needs a package that this node lacks: pip install '{PACKAGE}'", retry=True)
    import yfinance

    if not yfinance.config.debug.hide_exceptions:
        return yfinance
    # It would log what went wrong and give an empty table.
    yfinance.config.debug.hide_exceptions = False
    logging.getLogger("yfinance").setLevel(logging.CRITICAL)
    if (cache := surroundings.current().cache) is not None:
        folder = cache / "yfinance"
        folder.mkdir(parents=True, exist_ok=True)
        yfinance.set_tz_cache_location(str(folder))
    return yfinance


def _history(symbol: str, **asked: Any) -> pd.DataFrame | None:
    """What the package makes of Yahoo's answer; None where Yahoo has nothing in the range. Raises ItemFailed."""
    package = _package()
    from yfinance import exceptions

    try:
        history: pd.DataFrame = package.Ticker(symbol).history(**asked)
        return history
    except exceptions.YFRateLimitError:
        failure = ItemFailed(f"{symbol}: Yahoo takes no more requests from this node for now (429)", retry=True)
    except exceptions.YFTzMissingError:
        failure = ItemFailed(UNKNOWN.format(symbol))
    except exceptions.YFPricesMissingError as error:
        reason = getattr(error, "yahoo_reason", None)
        if reason is None or _NOTHING in reason.lower():
            return None
        lasting = any(words in reason.lower() for words in _LASTING)
        failure = ItemFailed(f"{symbol}: Yahoo says: {reason}", retry=not lasting)
    except Exception as error:  # of its HTTP library, of its parser where Yahoo answers in another form
        if getattr(getattr(error, "response", None), "status_code", None) == 404:
            failure = ItemFailed(UNKNOWN.format(symbol))
        else:
            failure = ItemFailed(f"{symbol}: no bars from Yahoo: {type(error).__name__}: {error}"[:500], retry=True)
    _forget(package)
    raise failure


def _forget(package: Any) -> None:
    """The package keeps answers in memory, bad ones too: another attempt shall ask again."""
    clear = getattr(package.data.YfData.cache_get, "cache_clear", None)
    if clear is not None:
        clear()
