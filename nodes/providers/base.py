"""What a source of market data is. Django-free; pandas is imported where bars are read, in worker processes."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nodes.executors.base import Param

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = ("datetime", "open", "high", "low", "close", "volume")


class Provider(ABC):
    """Bars by symbol. One instance serves one shard, so that a file read once serves all its items."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]] = ()
    """Parameters of this source alone, beside those of ``data_import``."""
    freqs: ClassVar[tuple[str, ...]] = ("D",)
    input: str = ""
    """The shard's file of rows from the parent, for the provider that reads them."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.given = params

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> None:
        """Raises FieldError for checked params that contradict each other or say what their kind cannot rule out."""

    @abstractmethod
    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        """Bars of ``symbol`` with start <= date <= end (None: open), oldest first.

        Columns: datetime (datetime64, naive), open, high, low, close, volume (float64). They are as the
        source has them: ``data_import`` keeps out rows that cannot be bars, so an unreadable date is NaT and
        an unreadable price NaN here.
        Raises ItemFailed for an unknown symbol or an unreadable source.
        """

    def symbols(self) -> list[str]:
        """Every symbol this source can name, sorted; empty where it cannot list them."""
        return []

    def span(self, symbol: str) -> tuple[dt.date, dt.date] | None:
        """First and last date of ``symbol`` where that is known without reading all its bars (no pandas here)."""
        return None


def nothing() -> pd.DataFrame:
    """No bars, of the right types."""
    import pandas as pd

    columns = {"datetime": pd.Series(dtype="datetime64[us]")}
    return pd.DataFrame(columns | {name: pd.Series(dtype="float64") for name in COLUMNS[1:]})


def between(bars: pd.DataFrame, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
    """The rows of ``bars`` with start <= date <= end (None: open), in their order.

    A row without a date belongs to the date of the row before it, so that a history cut into ranges names it once.
    """
    import pandas as pd

    if start is None and end is None:
        return bars
    dates = bars["datetime"].ffill().bfill().dt.normalize()
    undated = dates.isna()  # only where no row has a date
    inside = pd.Series(True, index=bars.index)
    if start is not None:
        inside &= undated | (dates >= pd.Timestamp(start))
    if end is not None:
        inside &= undated | (dates <= pd.Timestamp(end))
    return bars[inside]
