"""Bytes of CSV or Parquet to bars: which columns are ours, by their usual names, and how dates and numbers are written.

Where the bytes come from is in ``files``, whose params say how its files are laid out.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nodes.executors.base import ItemFailed, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pandas as pd

MEBIBYTE = 1024 * 1024

FREQS = ("1min", "5min", "15min", "30min", "60min", "D", "W", "M")
INTRADAY = FREQS[:5]
FIELDS = ("datetime", "open", "high", "low", "close", "volume")
DAYS = ("date", "trade_date", "tradedate", "day", "日期", "交易日期")
TIMES = ("time", "时间")
# As _plain() writes them, in order of preference where a file has several. The last ones of datetime are what the
# unnamed index of a DataFrame is called, in Parquet and in CSV.
ALIASES = {
    "datetime": ("datetime", "date_time", "timestamp", *DAYS, "dt", *TIMES, "__index_level_0__", ""),
    "open": ("open", "open_price", "o", "开盘", "开盘价"),
    "high": ("high", "high_price", "h", "最高", "最高价"),
    "low": ("low", "low_price", "l", "最低", "最低价"),
    "close": ("close", "close_price", "c", "收盘", "收盘价"),
    "volume": ("volume", "vol", "v", "trade_volume", "成交量"),
    "time": TIMES,
}
BLANKS = ("", "-", "--", "na", "n/a", "nan", "nat", "null", "none")
# A date of digits alone, by their number: a calendar format, or microseconds per unit of Unix time.
DIGITS: Mapping[int, str | int] = {
    8: "%Y%m%d",
    9: 1_000_000,
    10: 1_000_000,
    12: "%Y%m%d%H%M",
    13: 1_000,
    14: "%Y%m%d%H%M%S",
    16: 1,
}
LAST_SECOND = 253_402_300_799  # of the year 9999, in Unix time
ZONE = re.compile(r"(\d:\d\d(?::\d\d(?:[.,]\d+)?)?)\s*(?:Z|UTC|[+-]\d\d(?::?\d\d)?)$")


def check_layout(params: Mapping[str, Any]) -> None:
    """Raises FieldError for checked ``params`` that no file can be read by."""
    for ours, theirs in params.get("columns", {}).items():
        if ours not in FIELDS:
            raise FieldError("params.columns", f"{shown(ours)} is not one of: {', '.join(FIELDS)}")
        if not isinstance(theirs, str) or not theirs:
            raise FieldError("params.columns", f"{shown(theirs)}, given for {ours}, is not the name of a column")
    delimiter = params.get("delimiter", ",")
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise FieldError("params.delimiter", f"{shown(delimiter)} is not one character such as ; or |")
    if "date_format" in params:
        _check_date_format(params["date_format"])


def _check_date_format(text: str) -> None:
    """Raises FieldError for one with which a date could not be written and read back."""
    day = dt.datetime(2021, 3, 4, tzinfo=dt.UTC)
    try:
        read = dt.datetime.strptime(day.strftime(text), text).date()
    except ValueError:
        read = None
    if read != day.date():
        raise FieldError("params.date_format", f"{shown(text)} is not a format of dates like %d/%m/%Y")


def check_size(name: str, size: int, mebibytes: float) -> None:
    """Raises ItemFailed where ``size`` bytes, read from or unpacked out of ``name``, are too many."""
    if size > int(mebibytes * MEBIBYTE):
        raise ItemFailed(f"{name} has more than {mebibytes:g} MiB, or unpacks to more: see params.max_mb")


class Layout:
    """How the files of one source are written. ``name`` below is what messages call the file."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.given = params
        self._symbol_column: str = params.get("symbol_column", "")

    def bars(self, content: bytes, name: str, freq: str) -> pd.DataFrame:
        """All bars in a file's ``content``, with their ``symbol`` where a column has it. Raises ItemFailed."""
        read = self._parquet if content.startswith(b"PAR1") else self._csv
        columns = read(content, name, freq)
        try:
            return self._bars(columns, freq)
        except ValueError as error:
            raise ItemFailed(f"{name}: {error}") from None

    def _bars(self, columns: Mapping[str, pd.Series[Any]], freq: str) -> pd.DataFrame:
        """The file's columns under our names and types. Raises ValueError where no date can be read."""
        import pandas as pd

        bars = {"datetime": _datetimes(columns["datetime"], columns.get("time"), freq, self.given.get("date_format"))}
        for name in FIELDS[1:5]:
            bars[name] = _numbers(columns[name], float("nan"))
        if "volume" in columns:
            # Not blank, yet no number: infinite, so that the row is kept out instead of counting as 0.
            bars["volume"] = _numbers(columns["volume"], float("inf"))
        else:
            bars["volume"] = pd.Series(float("nan"), index=columns["close"].index)
        if self._symbol_column:
            bars["symbol"] = columns["symbol"].fillna("").astype("str").str.strip()
        return pd.DataFrame(bars)

    def _csv(self, content: bytes, name: str, freq: str) -> dict[str, pd.Series[Any]]:
        import pandas as pd

        encoding = self.given["encoding"]
        try:
            text = content.decode(encoding).lstrip("\ufeff\r\n")
        except UnicodeDecodeError as error:
            raise ItemFailed(f"{name} is not {encoding} ({error.reason}): see params.encoding") from None
        first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
        delimiter = self.given.get("delimiter") or max(",;\t|", key=first_line.count)
        try:
            header = next(csv.reader([first_line], delimiter=delimiter, skipinitialspace=True), [])
            places = {field: header.index(theirs) for field, theirs in self._match(header, name, freq).items()}
            texts = [places[field] for field in ("datetime", "time", "symbol") if field in places]
            blanks = sorted({*BLANKS, *(blank.upper() for blank in BLANKS), "NaN", "NaT", "None"})
            table = pd.read_csv(
                io.StringIO(text),
                sep=delimiter,
                header=0,
                names=list(range(len(header))),
                index_col=False,
                usecols=sorted(set(places.values())),
                dtype=dict.fromkeys(texts, "str"),
                # Only in columns of numbers: NA and NAN are symbols, too.
                keep_default_na=False,
                na_values={place: blanks for place in places.values() if place not in texts},
                skipinitialspace=True,
                low_memory=False,
            )
        except (ValueError, csv.Error) as error:
            raise ItemFailed(f"{name} cannot be read as CSV: {error}") from None
        return {field: table[place] for field, place in places.items()}

    def _parquet(self, content: bytes, name: str, freq: str) -> dict[str, pd.Series[Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            names = self._match(file.schema_arrow.names, name, freq)
            batches, size = [], 0
            # In batches, because a footer does not tell truly how much comes out of a file.
            for batch in file.iter_batches(batch_size=8192, columns=sorted(set(names.values()))):
                size += batch.nbytes
                check_size(name, size, self.given["max_mb"])
                batches.append(batch)
            table = pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
            return {field: _from_arrow(field, table.column(theirs)) for field, theirs in names.items()}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ItemFailed(f"{name} cannot be read as Parquet: {error}") from None

    def _match(self, names: Sequence[str], file: str, freq: str) -> dict[str, str]:
        """Our column names to those of the file. Raises ItemFailed naming what is missing."""
        plain = {_plain(name): name for name in reversed(names)}
        given: dict[str, str] = self.given.get("columns", {})
        wanted = {field: (given[field],) if field in given else ALIASES[field] for field in FIELDS}
        if self._symbol_column:
            wanted["symbol"] = (self._symbol_column,)
        found: dict[str, str] = {}
        for field, aliases in wanted.items():
            matches = (alias if alias in names else plain.get(_plain(alias)) for alias in aliases)
            match = next((name for name in matches if name is not None), None)
            if match is not None:
                found[field] = match
        needed = wanted.keys() - ({"volume"} - given.keys())
        missing = [wanted[field][0] for field in wanted if field in needed and field not in found]
        if missing:
            have = ", ".join(map(shown, names[:30])) or "none"
            raise ItemFailed(
                f"{file} lacks columns: {', '.join(missing)}; it has: {have}. "
                'Name them with params.columns, such as {"close": "Adj Close"}'
            )
        # Exports of intraday bars often have the day and the time of day apart.
        if freq in INTRADAY and "datetime" not in given and _plain(found["datetime"]) in DAYS:
            times = [plain[alias] for alias in TIMES if alias in plain]
            found |= {"time": times[0]} if times else {}
        return found


def _plain(name: str) -> str:
    return name.strip().strip("<>").strip().lower().replace(" ", "_")


def _from_arrow(field: str, column: Any) -> pd.Series[Any]:
    """Dates as datetimes where Parquet has them as such, otherwise text; other columns as they are."""
    import pyarrow as pa

    if field == "datetime" and pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    elif field in ("datetime", "time", "symbol") and not pa.types.is_timestamp(column.type):
        column = column.cast(pa.string())
    series: pd.Series[Any] = column.to_pandas()
    return series


def _numbers(cells: pd.Series[Any], unreadable: float) -> pd.Series[Any]:
    """``cells`` as float64: blank ones NaN, others that are no numbers ``unreadable``."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells):
        return cells.astype("float64")

    def number(cell: Any) -> float:
        if cell is None or str(cell).strip().lower() in BLANKS:
            return float("nan")
        try:
            return float(cell)
        except (TypeError, ValueError):
            return unreadable

    return pd.Series([number(cell) for cell in cells], index=cells.index, dtype="float64")


def _datetimes(
    cells: pd.Series[Any], times: pd.Series[Any] | None, freq: str, date_format: str | None
) -> pd.Series[Any]:
    """``cells`` as datetime64[us], naive; NaT where there is none. Raises ValueError where none can be read."""
    import pandas as pd

    if not isinstance(cells.dtype, pd.DatetimeTZDtype) and cells.dtype.kind != "M":
        text = cells.fillna("").astype("str").str.strip()
        text = text.mask(text.str.lower().isin(BLANKS), "")
        written = text[text != ""]
        if written.empty:
            return pd.Series(pd.NaT, index=cells.index, dtype="datetime64[us]")
        cells = _parsed(text, written.iloc[0], times, freq, date_format)
        if cells.isna().all():
            raise ValueError(
                f"{shown(written.iloc[0])} is not a date in ISO 8601; say with params.date_format how to read it, "
                "such as %d/%m/%Y"
            )
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        cells = cells.dt.tz_convert("UTC") if freq in INTRADAY else cells
        cells = cells.dt.tz_localize(None)
    return cells.astype("datetime64[us]")


def _parsed(
    text: pd.Series[Any], sample: str, times: pd.Series[Any] | None, freq: str, date_format: str | None
) -> pd.Series[Any]:
    """Dates from ``text``, of which ``sample`` shows the form; NaT where one is in another."""
    import pandas as pd

    if times is not None:
        text = text + " " + times.fillna("").astype("str").str.strip()
    if date_format:
        return pd.to_datetime(text, format=date_format, errors="coerce", utc="%z" in date_format)
    if times is None and re.fullmatch(r"[0-9]+(\.0+)?", sample):
        text = text.str.replace(r"\.0+$", "", regex=True)
        form = DIGITS.get(len(sample.partition(".")[0]))
        if isinstance(form, int):
            return _unix_time(text, form)
        if form is not None:
            return pd.to_datetime(text, format=form, errors="coerce")
    text = text.str.replace(r"^(\d{4})[./年](\d{1,2})[./月](\d{1,2})日?", r"\1-\2-\3", regex=True)
    if freq in INTRADAY:
        return pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    return pd.to_datetime(text.str.replace(ZONE, r"\1", regex=True), format="ISO8601", errors="coerce")


def _unix_time(text: pd.Series[Any], microseconds: int) -> pd.Series[Any]:
    """``text`` counts units of ``microseconds`` since 1970."""
    import numpy as np
    import pandas as pd

    limit = LAST_SECOND * 1_000_000
    counts = [int(cell) * microseconds if cell.isdecimal() and len(cell) < 20 else -1 for cell in text]
    stamps = np.array([count if 0 <= count <= limit else np.iinfo("int64").min for count in counts], dtype="int64")
    return pd.Series(stamps.view("datetime64[us]"), index=text.index)
