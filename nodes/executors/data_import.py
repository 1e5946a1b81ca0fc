"""Imports bars of market data: one item is a symbol, or a symbol with its own range of dates."""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nodes import providers
from nodes.executors.base import Column, Dataset, Executor, Item, ItemFailed, Param, Rows, check_params, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SOURCE = Param("source", "string", help="Where bars come from.", choices=tuple(sorted(providers.PROVIDERS)))
PIECES_LIMIT = 1_000_000
"""Most items that one split may make: centuries of months for many symbols must not fill the parent's memory."""
SYMBOL_LENGTH = 100
PRICES = ("open", "high", "low", "close")


class DataImport(Executor):
    type = "data_import"
    title = "Imports bars of market data, by symbol"
    params = (
        SOURCE,
        Param("freq", "string", "D", "Length of a bar, as the source offers it: 1min to 60min, D, W, M."),
        Param("start_date", "date", None, "First date to import; without it, all from the first one on."),
        Param("end_date", "date", None, "Last date to import, inclusive."),
    )
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

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.freq: str = params["freq"]
        self.provider = providers.get(params["source"])(params)

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Beside its own parameters those that the chosen source declares. Raises FieldError."""
        if not isinstance(params, Mapping):
            raise FieldError("params", f"{shown(params)} is not an object")
        source = check_params([SOURCE], {"source": params.get("source")})["source"]
        provider = providers.get(source)
        checked = check_params((*cls.params, *provider.params), params)
        if checked["freq"] not in provider.freqs:
            raise FieldError(
                "params.freq", f"{shown(checked['freq'])} is not offered by {source}: {', '.join(provider.freqs)}"
            )
        start, end = checked.get("start_date"), checked.get("end_date")
        if start and end and start > end:
            raise FieldError("params.end_date", f"{end} is before start_date, {start}")
        provider.check(checked)
        return checked

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Beside its own parameters, where they name a source, those of that source. Raises FieldError."""
        if not isinstance(settings, Mapping):
            raise FieldError("params", f"{shown(settings)} is not an object")
        source = check_params([SOURCE], {"source": settings.get("source")}, partial=True).get("source")
        if source is None:
            return check_params(cls.params, settings, partial=True)
        provider = providers.get(source)
        checked = check_params((*cls.params, *provider.params), settings, partial=True)
        if checked.get("freq", provider.freqs[0]) not in provider.freqs:
            raise FieldError(
                "params.freq", f"{shown(checked['freq'])} is not offered by {source}: {', '.join(provider.freqs)}"
            )
        return checked

    @classmethod
    def merged(cls, settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings for a source say nothing to a run with another one, save what all sources have."""
        if params.get("source") not in (None, settings.get("source")):
            settings = {param.name: settings[param.name] for param in cls.params if param.name in settings}
        return {**settings, **params}

    @classmethod
    def check_item(cls, item: Item) -> None:
        _parts(item)

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
                symbol, start, end = _range(item, params)
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
            symbol, start, end = _range(item, self.given)
        except ValueError as error:
            raise ItemFailed(str(error)) from None
        bars = self.provider.bars(symbol, self.freq, start, end)
        if bars.empty:
            print(f"{symbol}: no bars from {start or 'the first'} to {end or 'the last'}")
            return None
        return self._rows(symbol, _valid(symbol, bars))

    def _rows(self, symbol: str, bars: pd.DataFrame) -> pd.DataFrame:
        """``bars`` as rows of the dataset, oldest first, one for each datetime."""
        repeated = bars["datetime"].duplicated(keep="last").to_numpy()
        if repeated.any():
            print(
                f"{symbol}: {repeated.sum()} rows replaced by a later one with the same datetime: "
                f"{_some(bars['datetime'].to_numpy()[repeated])}"
            )
            bars = bars[~repeated]
        if not bars["datetime"].is_monotonic_increasing:
            bars = bars.sort_values("datetime")
        constants = {"symbol": symbol, "freq": self.freq, "data_source": self.provider.name}
        rows: pd.DataFrame = bars.assign(**constants)[list(self.dataset.names)].reset_index(drop=True)
        return rows


def _parts(item: Item) -> tuple[str, dt.date | None, dt.date | None]:
    """Symbol and own range of ``item``. Raises ValueError."""
    given = item if isinstance(item, dict) else {"symbol": item}
    symbol = given.get("symbol")
    if not isinstance(symbol, str) or given.keys() - {"symbol", "start_date", "end_date"}:
        raise ValueError(
            f"{shown(item)} is not a symbol such as 'AAPL', nor an object "
            'such as {"symbol": "AAPL", "start_date": "2020-01-01", "end_date": "2020-12-31"}'
        )
    if not 0 < len(symbol) <= SYMBOL_LENGTH or not symbol.isprintable() or symbol != symbol.strip():
        raise ValueError(
            f"{shown(symbol)} is not a symbol: 1 to {SYMBOL_LENGTH} printable characters, no space at either end"
        )
    dates: list[dt.date | None] = []
    for name in ("start_date", "end_date"):
        text = given.get(name)
        try:
            dates.append(None if text is None else dt.date.fromisoformat(text))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(f"{name} of {symbol}: {shown(text)} is not a date like 2024-01-31") from None
    start, end = dates
    if start and end and start > end:
        raise ValueError(f"end_date of {symbol}: {end} is before its start_date, {start}")
    return symbol, start, end


def _range(item: Item, params: Mapping[str, Any]) -> tuple[str, dt.date | None, dt.date | None]:
    """As ``_parts``, an end that the item leaves open taken from ``params``. Raises ValueError."""
    symbol, start, end = _parts(item)
    if start is None and params.get("start_date"):
        start = dt.date.fromisoformat(params["start_date"])
    if end is None and params.get("end_date"):
        end = dt.date.fromisoformat(params["end_date"])
    if start and end and start > end:
        raise ValueError(f"the range of {symbol}, its own and that of params together, ends {end}, before {start}")
    return symbol, start, end


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


def _valid(symbol: str, bars: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``bars`` that can be bars; the others are counted and named in the log.

    Comparisons are exact: a bar is wrong by a rounding error only if its source says so.
    Raises ItemFailed where none is left.
    """
    import numpy as np

    bars = bars.astype({"datetime": "datetime64[us]"} | dict.fromkeys((*PRICES, "volume"), "float64"))
    dates = bars["datetime"].to_numpy()
    first, last = np.datetime64("0001-01-01"), np.datetime64("9999-12-31T23:59:59.999999")
    opening, high, low, close = (bars[name].to_numpy() for name in PRICES)
    volume = bars["volume"].to_numpy()
    faults: dict[str, NDArray[Any]] = {
        "no date": np.isnat(dates),
        "a year outside 1 to 9999": (dates < first) | (dates > last),
        "a price that is missing or not finite": ~np.isfinite(bars[list(PRICES)].to_numpy()).all(axis=1),
        "high below low": high < low,
        "open outside low to high": (opening < low) | (opening > high),
        "close outside low to high": (close < low) | (close > high),
        "a volume that is missing or not finite": ~np.isfinite(volume),
        "negative volume": volume < 0,
    }
    valid = np.ones(len(bars), dtype=bool)
    reasons = []
    for fault, rows in faults.items():
        hit = rows & valid  # each row is counted once, under its first fault
        valid &= ~rows
        if hit.any():
            reasons.append(f"{hit.sum()} with {fault}{_some(dates[hit], ': ')}")
    if not valid.any():
        raise ItemFailed(f"{symbol}: none of {len(bars)} rows is a bar: {'; '.join(reasons)}")
    for reason in reasons:
        print(f"{symbol}: kept out {reason}")
    return bars[valid]


def _some(dates: NDArray[Any], lead: str = "") -> str:
    """The first three of ``dates``, without a midnight's zeros; nothing where they are no dates."""
    import numpy as np

    dates = dates[~np.isnat(dates)]
    if not len(dates):
        return ""
    texts = (str(text).removesuffix("T00:00:00").replace("T", " ") for text in np.datetime_as_string(dates[:3], "s"))
    return f"{lead}{', '.join(texts)}{', …' if len(dates) > 3 else ''}"
