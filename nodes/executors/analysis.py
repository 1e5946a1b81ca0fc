"""Technical analysis of bars: one item is a symbol, one row a bar with its indicators and signals.

How they are computed is in ``nodes.indicators``; here are the params, the table, and which bars come out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nodes.executors.bars import DATES, FREQ, OverBars, range_of, source_param
from nodes.executors.base import Column, Dataset, Item, ItemFailed, Param, Rows
from nodes.indicators.standard import LIMITS, NUMBERS, PERIODS, RISING
from nodes.indicators.table import TABLE, Indicator, read
from nodes.protocol import FieldError

if TYPE_CHECKING:
    from nodes.indicators.study import Study

EXTRAS_LIMIT = 50
PRICES = ("open", "high", "low", "close", "volume")
_LATEST = "QUALIFY row_number() OVER (PARTITION BY symbol, freq ORDER BY datetime DESC) = 1"
_SUMMARY = """SELECT symbol, freq, datetime, close,
    CAST(json_extract_string(summary, '$.change') AS DOUBLE) AS change,
    json_extract_string(summary, '$.trend') AS trend,
    CAST(json_extract_string(summary, '$.score') AS BIGINT) AS score,
    CAST(json_extract_string(summary, '$.position') AS DOUBLE) AS position,
    CAST(json_extract_string(summary, '$.volatility') AS DOUBLE) AS volatility,
    rsi, adx, macd_hist, json_extract_string(summary, '$.readings.rsi') AS rsi_reading,
    json_extract_string(summary, '$.readings.boll') AS boll_reading"""
_EACH_SIGNAL = "unnest(from_json(signals, '[\"VARCHAR\"]')) AS signal"


class Analysis(OverBars):
    type = "analysis"
    title = "Technical indicators, signals and a summary, by symbol"
    source = source_param(store=True)
    params = (
        source,
        FREQ,
        *DATES,
        Param(
            "rows",
            "string",
            "all",
            "Which bars become rows; signals: those with one, and the last.",
            choices=("all", "signals", "latest"),
        ),
        Param("last", "integer", None, "Only the last so many bars of the range.", minimum=1, maximum=10_000_000),
        Param(
            "extra",
            "list",
            None,
            f"Further indicators, as name or name_param_param: trix_15, sar. Known are: {', '.join(TABLE)}.",
            of="string",
        ),
        Param(
            "engine",
            "string",
            "auto",
            "What computes; auto: TA-Lib where it is installed, otherwise pandas. The numbers are the same.",
            choices=("auto", "talib", "pandas"),
        ),
        *PERIODS,
        *LIMITS,
    )
    dataset = Dataset(
        table="analysis",
        columns=(
            Column("symbol", "string"),
            Column("freq", "string"),
            Column("datetime", "timestamp"),
            *(Column(name, "float64") for name in NUMBERS),
            *(Column(name, "json") for name in ("signals", "extra", "summary")),
        ),
        key=("symbol", "freq", "datetime"),
        views=(
            ("analysis_summary", f"{_SUMMARY}, summary FROM {{table}} WHERE summary IS NOT NULL {_LATEST}"),
            (
                "analysis_signals",
                f"SELECT symbol, freq, datetime, close, {_EACH_SIGNAL} FROM {{table}} WHERE signals IS NOT NULL",
            ),
        ),
    )
    reductions = {
        "ranking": f"SELECT * FROM ({_SUMMARY} FROM rows WHERE summary IS NOT NULL {_LATEST}) AS latest "
        "ORDER BY score DESC NULLS LAST, symbol LIMIT 100",
        "signals": "SELECT signal, count(*) AS bars, count(DISTINCT symbol) AS symbols, max(datetime) AS latest "
        f"FROM (SELECT symbol, datetime, {_EACH_SIGNAL} FROM rows WHERE signals IS NOT NULL) AS each "
        "GROUP BY signal ORDER BY bars DESC, signal",
    }

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check(params)
        for lesser, greater in RISING:
            if checked[lesser] >= checked[greater]:
                raise FieldError(
                    f"params.{lesser}", f"{checked[lesser]} is not below {greater}, which is {checked[greater]}"
                )
        _extras(checked)
        return checked

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_settings(settings)
        _extras(checked)
        return checked

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.extras = _extras(params)

    def run(self, item: Item) -> Rows:
        try:
            symbol, start, end = range_of(item, self.given)
        except ValueError as error:
            raise ItemFailed(str(error)) from None
        from nodes.indicators import engines
        from nodes.indicators.study import Study

        try:
            engine = engines.resolved(self.given["engine"])
        except engines.NoTalib as error:
            raise ItemFailed(f"{symbol}: {error}, or choose another engine", retry=True) from None
        # All earlier bars: an average that never forgets has one value for a bar only if it always begins at the first.
        bars = self.bars(symbol, None, end)
        study = Study(
            bars["datetime"].to_numpy(),
            {name: bars[name].to_numpy() for name in PRICES},
            self.given,
            engine,
            self.extras,
        )
        first = self._first(symbol, study, start, end)
        if study.empty:
            raise ItemFailed(f"{symbol}: {len(bars)} bars are too few for any indicator")
        return self._rows(symbol, study, first)

    def _first(self, symbol: str, study: Study, start: dt.date | None, end: dt.date | None) -> int:
        """The number of the first bar that comes out. Raises ItemFailed where none does."""
        import numpy as np

        at = study.at
        first = 0 if start is None else int(np.searchsorted(at, np.datetime64(start, "us")))
        if first == len(at):
            last = np.datetime_as_string(at[-1], "D")
            raise ItemFailed(f"{symbol}: no bars from {start} to {end or 'the last'}; its last one is of {last}")
        return max(first, len(at) - self.given["last"]) if "last" in self.given else first

    def _rows(self, symbol: str, study: Study, first: int) -> Rows:
        chosen = study.chosen(first, self.given["rows"])
        size = len(chosen)
        summaries = [None] * (size - 1) + [study.summary()]
        texts = (study.signals(chosen), study.extras(chosen), summaries)
        numbers = [values[chosen] for values in study.numbers.values()]
        if size == 1:
            # One row goes quicker as a tuple than as thirty columns.
            at = study.at[chosen].tolist()[0]
            return [(symbol, self.freq, at, *(column[0].item() for column in numbers), *(text[0] for text in texts))]
        import pyarrow as pa

        labels = [pa.repeat(pa.scalar(label, pa.string()), size) for label in (symbol, self.freq)]
        columns = [
            *labels,
            pa.array(study.at[chosen]),
            *map(pa.array, numbers),
            *(pa.array(text, pa.string()) for text in texts),
        ]
        return pa.table(columns, names=list(self.dataset.names))


def _extras(params: Mapping[str, Any]) -> list[tuple[str, Indicator, tuple[Any, ...]]]:
    """What the param ``extra`` asks for. Raises FieldError."""
    asked = params.get("extra", ())
    if len(asked) > EXTRAS_LIMIT:
        raise FieldError("params.extra", f"names {len(asked)} indicators; at most {EXTRAS_LIMIT} are allowed")
    try:
        return [(text, *read(text)) for text in asked]
    except ValueError as error:
        raise FieldError("params.extra", str(error)) from None
