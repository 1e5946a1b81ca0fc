"""Bars as the input of an executor: the parameters that say which, and how they are read, by symbol.

``data_import`` brings bars into the table ``kline``; ``analysis``, ``backtest`` and ``optimization`` work over them,
from that table (source ``store``) or straight from a provider.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nodes import providers
from nodes.executors.base import REQUIRED, Executor, Item, ItemFailed, Param, Reading, Variant, check_params, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pandas as pd

SYMBOL_LENGTH = 100
STORE = "store"
FREQ = Param("freq", "string", "D", "Length of a bar, as the source offers it: 1min to 60min, D, W, M.")
BAR_COLUMNS = ("datetime", "open", "high", "low", "close", "volume")
DATES = (
    Param("start_date", "date", None, "First date; without it, all from the first one on."),
    Param("end_date", "date", None, "Last date, inclusive."),
)


def source_param(*, store: bool) -> Param:
    """``store``: may bars come from the parent's own table?"""
    names = sorted(name for name in providers.PROVIDERS if store or name != STORE)
    told = f"Where bars come from; {STORE}: the parent's table kline." if store else "Where bars come from."
    return Param("source", "string", STORE if store else REQUIRED, told, choices=tuple(names))


class OverBars(Executor):
    """An executor whose params name a source of bars.

    Subclasses declare ``source``, and ``params`` with it, FREQ and DATES in it.
    """

    source: ClassVar[Param]
    item_form = 'A symbol such as AAPL, or {"symbol": "AAPL", "start_date": "2020-01-01", "end_date": "2020-12-31"}.'

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.freq: str = params["freq"]
        self.provider = providers.get(params["source"])(params)

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Beside its own parameters those that the chosen source declares. Raises FieldError."""
        if not isinstance(params, Mapping):
            raise FieldError("params", f"{shown(params)} is not an object")
        source = check_params([cls.source], {"source": params.get("source")})["source"]
        provider = providers.get(source)
        checked = check_params((*cls.params, *provider.params), params)
        _check_freq(checked["freq"], provider)
        start, end = checked.get("start_date"), checked.get("end_date")
        if start and end and start > end:
            raise FieldError("params.end_date", f"{end} is before start_date, {start}")
        provider.check(checked)
        return checked

    @classmethod
    def variants(cls) -> Sequence[Variant]:
        return [
            Variant("source", name, providers.get(name).params, choices={"freq": providers.get(name).freqs})
            for name in cls.source.choices or ()
        ]

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Beside its own parameters, where they name a source, those of that source. Raises FieldError."""
        if not isinstance(settings, Mapping):
            raise FieldError("params", f"{shown(settings)} is not an object")
        source = check_params([cls.source], {"source": settings.get("source")}, partial=True).get("source")
        if source is None:
            return check_params(cls.params, settings, partial=True)
        provider = providers.get(source)
        checked = check_params((*cls.params, *provider.params), settings, partial=True)
        _check_freq(checked.get("freq", provider.freqs[0]), provider)
        return checked

    @classmethod
    def merged(cls, settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings for a source say nothing to a run with another one, save what all sources have."""
        if params.get("source") not in (None, settings.get("source")):
            settings = {param.name: settings[param.name] for param in cls.params if param.name in settings}
        return {**settings, **params}

    @classmethod
    def check_item(cls, item: Item) -> None:
        parts(item)

    @classmethod
    def symbols_of(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[str]:
        """The symbols whose bars these items need."""
        return [parts(item)[0] for item in items]

    @classmethod
    def reads(cls, items: Sequence[Item], params: Mapping[str, Any]) -> Reading | None:
        if params["source"] != STORE:
            return None
        return Reading(
            table="kline",
            columns=("symbol", *BAR_COLUMNS),
            where={"freq": params["freq"]},
            column="symbol",
            values=tuple(dict.fromkeys(cls.symbols_of(items, params))),
            order=("symbol", "datetime"),
            time_column="datetime",
        )

    def bars(self, symbol: str, start: dt.date | None = None, end: dt.date | None = None) -> pd.DataFrame:
        """Valid bars of ``symbol``, oldest first, one for each datetime; columns BAR_COLUMNS.

        Raises ItemFailed, also where there are none.
        """
        from nodes.executors.bar_rows import ordered, valid

        self.provider.input = self.input
        bars = self.provider.bars(symbol, self.freq, start, end)
        if bars.empty:
            raise ItemFailed(f"{symbol}: no bars from {start or 'the first'} to {end or 'the last'}")
        return ordered(symbol, valid(symbol, bars))[list(BAR_COLUMNS)].reset_index(drop=True)


def _check_freq(freq: str, provider: type[providers.Provider]) -> None:
    if freq not in provider.freqs:
        raise FieldError("params.freq", f"{shown(freq)} is not offered by {provider.name}: {', '.join(provider.freqs)}")


def parts(item: Item) -> tuple[str, dt.date | None, dt.date | None]:
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


def range_of(item: Item, params: Mapping[str, Any]) -> tuple[str, dt.date | None, dt.date | None]:
    """As ``parts``, an end that the item leaves open taken from ``params``. Raises ValueError."""
    symbol, start, end = parts(item)
    if start is None and params.get("start_date"):
        start = dt.date.fromisoformat(params["start_date"])
    if end is None and params.get("end_date"):
        end = dt.date.fromisoformat(params["end_date"])
    if start and end and start > end:
        raise ValueError(f"the range of {symbol}, its own and that of params together, ends {end}, before {start}")
    return symbol, start, end
