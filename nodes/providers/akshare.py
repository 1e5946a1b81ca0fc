"""Bars of China's A shares from Eastmoney (东方财富), through the package akshare.

The package opens connections of its own, to push2his.eastmoney.com only; see docs/sources-of-bars.md.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nodes.executors.base import ItemFailed, Param, shown
from nodes.protocol import FieldError
from nodes.providers.base import Provider, between, nothing

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "akshare==1.19.5"
PERIODS = {"1min": "1", "5min": "5", "15min": "15", "30min": "30", "60min": "60"}
LOT = 100
"""Shares: Eastmoney counts volume in lots (手) of so many."""
SECONDS = 30
FIRST, LAST = dt.date(1970, 1, 1), dt.date(2050, 1, 1)
"""The package's own bounds; Eastmoney's first bars are of 1990."""
NAMES = {"开盘": "open", "最高": "high", "最低": "low", "收盘": "close", "成交量": "volume"}

_SYMBOL = re.compile(r"([0-9]{6})\.(SH|SZ|BJ)|(SH|SZ|BJ)([0-9]{6})|([0-9]{6})", re.IGNORECASE)
# Codes of A shares; the package itself takes what begins with 6 for Shanghai's, and all others for the other market.
_A_SHARES = {"SH": ("60", "68"), "SZ": ("00", "30"), "BJ": ("43", "83", "87", "88", "92")}


class AkShare(Provider):
    """Intraday bars are named by their end, in the exchange's own time (UTC+8), as Eastmoney writes them.

    Volumes become shares. Weeks and months are made of days, so that an unfinished one keeps its date.
    """

    name = "akshare"
    freqs = (*PERIODS, "D", "W", "M")
    params = (
        Param(
            "adjust",
            "string",
            "",
            "Prices adjusted for dividends and splits: qfq backwards from the last one, hfq onwards from the first; "
            "empty: as traded.",
            choices=("", "qfq", "hfq"),
        ),
    )

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> None:
        if params.get("freq") == "1min" and params.get("adjust"):
            raise FieldError("params.adjust", f"{params['adjust']!r}: Eastmoney's bars of 1min are as traded only")

    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        code = _code(symbol)
        if freq in PERIODS:
            return self._minutes(symbol, code, freq, start, end)
        return self._days(symbol, code, freq, start, end)

    def _days(self, symbol: str, code: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        from nodes.providers.resampling import asked, of_days

        first, last = asked(freq, start, end)
        ends = {"start_date": _within(first or FIRST), "end_date": _within(last or LAST)}
        table = self._table(symbol, "stock_zh_a_hist", code, period="daily", timeout=SECONDS, **ends)
        if table.empty:
            self._check_known(symbol, code)
            return nothing()
        bars = _bars(table, "日期")
        return between(bars if freq == "D" else of_days(symbol, bars, freq), start, end)

    def _minutes(self, symbol: str, code: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        table = self._table(symbol, "stock_zh_a_hist_min_em", code, period=PERIODS[freq])
        return nothing() if table.empty else between(_bars(table, "时间"), start, end)

    def _check_known(self, symbol: str, code: str) -> None:
        """The package gives an empty table for no bars in a range and for an unknown code. Raises ItemFailed."""
        if self._table(symbol, "stock_zh_a_hist", code, period="monthly", timeout=SECONDS).empty:
            raise ItemFailed(f"{symbol!r} is not known to Eastmoney")

    def _table(self, symbol: str, function: str, code: str, **asked: Any) -> pd.DataFrame:
        """What the package makes of Eastmoney's answer; empty where there is nothing. Raises ItemFailed."""
        call: Callable[..., pd.DataFrame] = getattr(_package(), function)
        import pandas as pd
        import requests

        try:
            return call(symbol=code, **asked, adjust=self.given.get("adjust", ""))
        except requests.RequestException as error:  # also an answer that is no JSON
            raise ItemFailed(f"{symbol}: no bars from Eastmoney: {_short(error)}", retry=True) from None
        except TypeError as error:
            # The package looks into "data" of the answer, which is null for an unknown code.
            if "NoneType" in str(error):
                raise ItemFailed(f"{symbol!r} is not known to Eastmoney") from None
            raise ItemFailed(f"{symbol}: {_unreadable(error)}", retry=True) from None
        except ValueError as error:
            # It names the columns of a table that has none where Eastmoney has no bars.
            if "0 elements" in str(error):
                return pd.DataFrame()
            raise ItemFailed(f"{symbol}: {_unreadable(error)}", retry=True) from None
        except (KeyError, IndexError, AttributeError) as error:
            raise ItemFailed(f"{symbol}: {_unreadable(error)}", retry=True) from None


def _package() -> Any:
    """Raises ItemFailed where it is not installed."""
    if find_spec("akshare") is None:
        # Another node may have the package, so another attempt may succeed.
        raise ItemFailed(f"source 'akshare' needs a package that this node lacks: pip install '{PACKAGE}'", retry=True)
    import akshare

    return akshare


def _code(symbol: str) -> str:
    """The six digits. Raises ItemFailed for what is no A share: the package would ask for another one."""
    match = _SYMBOL.fullmatch(symbol)
    if match is None:
        raise ItemFailed(f"{shown(symbol)} is not a symbol such as 600000.SH, sh600000 or 600000")
    code = match[1] or match[4] or match[5]
    market = (match[2] or match[3] or "").upper()
    if not any(code.startswith(_A_SHARES[each]) for each in ([market] if market else _A_SHARES)):
        known = "; ".join(f"{each}: {', '.join(beginnings)}" for each, beginnings in _A_SHARES.items())
        raise ItemFailed(f"{symbol!r} is not an A share; their codes begin with {known}")
    return code


def _within(day: dt.date) -> str:
    return min(max(day, FIRST), LAST).strftime("%Y%m%d")


def _bars(table: pd.DataFrame, when: str) -> pd.DataFrame:
    """Raises ItemFailed for a table without the columns of a bar."""
    import pandas as pd

    missing = [name for name in (when, *NAMES) if name not in table]
    if missing:
        raise ItemFailed(
            f"akshare's table lacks columns: {', '.join(missing)}; this was made for {PACKAGE}", retry=True
        )
    bars = {"datetime": pd.to_datetime(table[when], errors="coerce").astype("datetime64[us]")}
    bars |= {ours: table[theirs].astype("float64") for theirs, ours in NAMES.items()}
    bars["volume"] = bars["volume"] * LOT
    return pd.DataFrame(bars)


def _short(error: Exception) -> str:
    # Of a connection that failed, without the address and its many parameters.
    cause = getattr(error.args[0] if error.args else None, "reason", None) or error
    return f"{type(cause).__name__}: {cause}"[:300]


def _unreadable(error: Exception) -> str:
    return f"Eastmoney's answer is not as {PACKAGE} reads it: {_short(error)}"
