"""Imports bars of market data: one item is a symbol, or a symbol with its own range of dates."""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nodes import providers
from nodes.executors.bars import DATES, FREQ, OverBars, range_of, source_param
from nodes.executors.base import Column, Dataset, Item, ItemFailed, Rows, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pandas as pd

PIECES_LIMIT = 1_000_000
"""Most items that one split may make: centuries of months for many symbols must not fill the parent's memory."""


class DataImport(OverBars):
    type = "data_import"
    title = "Imports bars of market data, by symbol"
    source = source_param(store=False)
    params = (source, FREQ, *DATES)
    dataset = Dataset(
        table="kline",
        columns=(
            Column("symbol", "string"),
            Column("datetime", "timestamp"),
            Column("freq", "string"),
            Column("open", "float64"),
            Column("high", "float64"),
            Column("low", "float64"),
            Column("close", "float64"),
            Column("volume", "float64"),
            Column("data_source", "string"),
        ),
        key=("symbol", "freq", "datetime"),
    )

    @classmethod
    def expand(cls, items: Sequence[Item], params: Mapping[str, Any], split: str) -> list[Item]:
        """Each item cut into ``{"symbol", "start_date", "end_date"}`` by calendar ``year`` or ``month``.

        The range is the item's own, else that of ``params``, else what the source knows of the symbol. An item
        stays whole where the source does not have it (its run then says why it failed) or has nothing in the range.
        Raises FieldError where an end of the range is unknown.
        """
        if split not in ("year", "month"):
            raise FieldError("split", f"{shown(split)} is not a split of {cls.type}: year, month")
        params = cls.check(params)
        provider = providers.get(params["source"])(params)
        known = frozenset(provider.symbols())
        expanded: list[Item] = []
        for number, item in enumerate(items):
            try:
                symbol, start, end = range_of(item, params)
            except ValueError as error:
                raise FieldError(f"items[{number}]", str(error)) from None
            if known and symbol not in known:
                expanded.append(item)
                continue
            ends = (start, end) if start and end else provider.span(symbol)
            if ends is None:
                raise FieldError(
                    "split",
                    f"{shown(symbol)} cannot be split by {split}, because its first and last date are not known here: "
                    "give params.start_date and params.end_date",
                )
            pieces = _pieces(start or ends[0], end or ends[1], split)
            if len(expanded) + len(pieces) > PIECES_LIMIT:
                raise FieldError("split", f"{split!r} would make more than {PIECES_LIMIT:,} items: split coarser")
            expanded += [{"symbol": symbol, "start_date": at, "end_date": to} for at, to in pieces] or [item]
        return expanded

    def run(self, item: Item) -> Rows:
        try:
            symbol, start, end = range_of(item, self.given)
        except ValueError as error:
            raise ItemFailed(str(error)) from None
        bars = self.provider.bars(symbol, self.freq, start, end)
        if bars.empty:
            print(f"{symbol}: no bars from {start or 'the first'} to {end or 'the last'}")
            return None
        from nodes.executors.bar_rows import ordered, valid

        return self._rows(symbol, ordered(symbol, valid(symbol, bars)))

    def _rows(self, symbol: str, bars: pd.DataFrame) -> pd.DataFrame:
        """``bars`` as rows of the dataset."""
        constants = {"symbol": symbol, "freq": self.freq, "data_source": self.provider.name}
        rows: pd.DataFrame = bars.assign(**constants)[list(self.dataset.names)].reset_index(drop=True)
        return rows


@lru_cache(maxsize=4)  # mostly all symbols of a run have the same range
def _pieces(first: dt.date, last: dt.date, split: str) -> tuple[tuple[str, str], ...]:
    """First and last day of each calendar year or month in [first, last], clipped to it; none where it is empty."""
    pieces = []
    while first <= last:
        month = first.month if split == "month" else 12
        end = min(last, dt.date(first.year, month, calendar.monthrange(first.year, month)[1]))
        pieces.append((first.isoformat(), end.isoformat()))
        if end == last:  # before the next day is taken, which 9999-12-31 does not have
            break
        first = end + dt.timedelta(days=1)
    return tuple(pieces)
