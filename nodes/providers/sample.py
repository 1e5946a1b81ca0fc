"""Real daily bars without a network: five US stocks, 2000-03-01 to 2013-03-01, from the package bokeh-sampledata.

12,154 bars of AAPL, FB, GOOG, IBM and MSFT, unadjusted, public domain (Quandl WIKI Prices).
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nodes.executors.base import ItemFailed
from nodes.providers.base import Provider, between

if TYPE_CHECKING:
    import pandas as pd


class Sample(Provider):
    name = "sample"

    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        tables = _tables()
        if symbol not in tables:
            raise ItemFailed(f"{symbol!r} is not in the sample, which has: {', '.join(sorted(tables))}")
        return between(tables[symbol], start, end)

    def symbols(self) -> list[str]:
        return sorted(_spans())

    def span(self, symbol: str) -> tuple[dt.date, dt.date] | None:
        return _spans().get(symbol)


def _file() -> Path | None:
    """The package's file, found without importing the package, which would import pandas."""
    spec = find_spec("bokeh_sampledata")
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder, "_data", "stocks.csv.gz")
        if file.is_file():
            return file
    return None


@cache
def _spans() -> dict[str, tuple[dt.date, dt.date]]:
    """First and last date by symbol; empty where the package is missing, since only workers need it."""
    file = _file()
    if file is None:
        return {}
    spans: dict[str, tuple[str, str]] = {}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            symbol, date = row["Ticker"], row["Date"]
            first, last = spans.get(symbol, (date, date))
            spans[symbol] = min(first, date), max(last, date)
    return {
        symbol: (dt.date.fromisoformat(first), dt.date.fromisoformat(last)) for symbol, (first, last) in spans.items()
    }


@cache
def _tables() -> dict[str, pd.DataFrame]:
    """Bars by symbol, parsed once in each worker process."""
    import pandas as pd

    file = _file()
    if file is None:
        # Another node may have the package, so another attempt may succeed.
        raise ItemFailed(
            "source 'sample' needs a package that this node lacks: pip install bokeh-sampledata", retry=True
        )
    table = pd.read_csv(file, dtype=dict.fromkeys(("Open", "High", "Low", "Close", "Volume"), "float64"))
    table.columns = table.columns.str.lower()
    table["datetime"] = pd.to_datetime(table["date"], format="%Y-%m-%d").astype("datetime64[us]")
    columns = ["datetime", "open", "high", "low", "close", "volume"]
    return {str(symbol): bars[columns] for symbol, bars in table.groupby("ticker")}
