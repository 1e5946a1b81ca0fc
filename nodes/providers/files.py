"""Bars from CSV or Parquet files that the node can read: a folder, a glob, one file, or a path or http(s) address
with ``{symbol}`` in it.

From top to bottom: which sources hold a symbol, how their bytes are fetched, how the bytes become bars.
"""

from __future__ import annotations

import csv
import datetime as dt
import errno
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from nodes.executors.base import ItemFailed, Param, shown
from nodes.protocol import FieldError
from nodes.providers.base import Provider, between

if TYPE_CHECKING:
    import pandas as pd
    import requests

    Tables = dict[str, pd.DataFrame]

SUFFIXES = (".csv", ".csv.gz", ".parquet")
"""What a folder's files are called after the symbol."""
MEBIBYTE = 1024 * 1024
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and between two pieces of an answer; the shard's own time-out bounds the whole."""
REDIRECTS_LIMIT = 5
PASSING_STATUS = {408, 425, 429}
"""HTTP answers below 500 that another attempt may turn into a good one."""
PASSING_ERRNO = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EHOSTDOWN}
"""What a mounted disk answers while it is away."""

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

_LAST: dict[tuple[Any, ...], Tables] = {}
"""The file read last by this process: shards of one symbol's years, or of one file's symbols, follow each other."""


class Files(Provider):
    """Bars are taken to be of the asked ``freq``.

    Dates: ISO 8601, year first, or Unix time. Times with a zone become UTC; of bars of a day or longer the date
    stays as the file writes it, whatever its zone. A blank volume counts as 0, and the log says so.
    """

    name = "files"
    freqs = FREQS
    params = (
        Param(
            "path",
            "string",
            help="On the nodes: a folder of SYMBOL.csv, .csv.gz or .parquet; a glob; one file; or a path or "
            "http(s) address with {symbol} in it.",
        ),
        Param("columns", "object", None, 'Our column names to the file\'s, such as {"close": "Adj Close"}.'),
        Param("symbol_column", "string", None, "Column that names the symbol, where a file holds many."),
        Param("delimiter", "string", None, "Between the columns of a CSV; without it, found in its first line."),
        Param("date_format", "string", None, "As in strptime, such as %d/%m/%Y; without it ISO 8601 or Unix time."),
        Param("encoding", "string", "utf-8", "Of a CSV.", choices=("utf-8", "gb18030", "latin-1", "utf-16")),
        Param("max_mb", "number", 64.0, "Largest file, also once decompressed, in MiB.", minimum=0.001, maximum=8192),
    )

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._path: str = params["path"]
        self._remote = _is_address(self._path)
        self._symbol_column: str = params.get("symbol_column", "")
        self._limit = int(params["max_mb"] * MEBIBYTE)
        # What an address answers may change, so it is kept for this shard only.
        self._last: dict[tuple[Any, ...], Tables] = {} if self._remote else _LAST
        self._matched: dict[str, list[Path]] | None = None
        self._session: requests.Session | None = None

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> None:
        _check_path(params["path"], bool(params.get("symbol_column")))
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

    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        bars = between(self._table(symbol, freq), start, end)
        blank = bars["volume"].isna()
        if blank.any():
            print(f"{symbol}: {blank.sum()} of {len(bars)} rows have no volume in the file; taken as 0")
            bars = bars.assign(volume=bars["volume"].fillna(0.0))
        return bars

    def symbols(self) -> list[str]:
        """By the names of the files, as this machine has them; empty for addresses and files of many symbols."""
        # "**" may walk a whole disk, and this runs where the run is submitted.
        if self._remote or self._symbol_column or "**" in self._path:
            return []
        try:
            if "{symbol}" not in self._path:
                return sorted(self._files())
            before, _, after = str(Path(self._path).expanduser()).partition("{symbol}")
            if glob.has_magic(before + after) or "{symbol}" in after:
                return []
            return sorted(name[len(before) : len(name) - len(after)] for name in glob.glob(f"{before}*{after}"))
        except (OSError, ItemFailed):
            return []

    # Which sources hold a symbol

    def _table(self, symbol: str, freq: str) -> pd.DataFrame:
        """All bars of ``symbol``; from files of many symbols all their tables are kept. Raises ItemFailed."""
        sources = self._sources(symbol)
        key = (freq, json.dumps(self.given, sort_keys=True), *map(self._identity, sources))
        tables = self._last.get(key)
        if tables is None:
            tables = self._read(sources, freq)
            self._last.clear()
            self._last[key] = tables
        if not self._symbol_column:
            return tables[""]
        if symbol not in tables:
            raise ItemFailed(f"{symbol!r} is not in column {self._symbol_column!r} of {_named(self._path)}")
        return tables[symbol]

    def _identity(self, source: str) -> tuple[Any, ...]:
        if self._remote:
            return (source,)
        try:
            stat = Path(source).stat()
        except OSError as error:
            raise _unreadable(source, error) from None
        return source, stat.st_mtime_ns, stat.st_size

    def _sources(self, symbol: str) -> list[str]:
        """The one address or the files to read for ``symbol``. Raises ItemFailed where there is none."""
        # Of files of many symbols the symbol is a value, not a part of the path.
        if not self._symbol_column and (re.search(r"[/\\\x00]|\.\.", symbol) or symbol in ("", ".")):
            raise ItemFailed(f"{symbol!r} cannot be part of a path: it is empty, or has a separator, NUL or dots")
        if self._remote:
            return [self._path.replace("{symbol}", quote(symbol, safe=""))]
        try:
            files = self._files_of(symbol)
        except (OSError, ValueError) as error:
            raise _unreadable(self._path, error) from None
        if not files:
            if self._symbol_column:
                raise ItemFailed(f"no file matches {self._path}")
            raise ItemFailed(f"no file for {symbol!r} by {self._path} (a folder's are called {', '.join(SUFFIXES)})")
        return [str(file) for file in files]

    def _files_of(self, symbol: str) -> list[Path]:
        if "{symbol}" in self._path:
            path = Path(self._path.replace("{symbol}", symbol)).expanduser()
            return [path] if path.is_file() else _matches(self._path.replace("{symbol}", glob.escape(symbol)))
        if self._symbol_column:
            return [file for files in self._files().values() for file in files]
        folder = Path(self._path).expanduser()
        if not folder.is_dir():
            return self._files().get(symbol, [])
        files = [file for suffix in SUFFIXES if (file := folder / f"{symbol}{suffix}").is_file()]
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise ItemFailed(f"{folder} has {names}: give a glob such as {folder / f'*{files[0].suffix}'} to choose")
        return files

    def _files(self) -> dict[str, list[Path]]:
        """By symbol, the files of a folder, of a glob, or the one file. Raises ItemFailed, OSError."""
        if self._matched is None:
            path = Path(self._path).expanduser()
            if path.is_dir():
                files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
            elif path.is_file():
                files = [path]
            elif glob.has_magic(self._path):
                files = _matches(self._path)
            else:
                raise ItemFailed(f"{self._path} is neither a file nor a folder on this node")
            self._matched = {}
            for file in files:
                self._matched.setdefault(_stem(file), []).append(file)
        return self._matched

    # How bytes are fetched

    def _bytes(self, source: str) -> bytes:
        """The content of ``source``, decompressed. Raises ItemFailed, also above the size limit."""
        content = self._download(source) if self._remote else self._load(source)
        if content.startswith(b"\x1f\x8b"):
            try:
                with gzip.open(io.BytesIO(content)) as packed:
                    content = packed.read(self._limit + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ItemFailed(f"{_named(source)} is not a whole gzip file: {error}") from None
            self._check_size(source, len(content))
        return content

    def _load(self, source: str) -> bytes:
        try:
            with open(source, "rb") as file:
                content = file.read(self._limit + 1)
        except OSError as error:
            raise _unreadable(source, error) from None
        self._check_size(source, len(content))
        return content

    def _download(self, address: str) -> bytes:
        import requests

        if self._session is None:
            self._session = requests.Session()
            self._session.max_redirects = REDIRECTS_LIMIT
            self._session.headers["User-Agent"] = "cascade"
        content = bytearray()
        try:
            with self._session.get(address, stream=True, timeout=TIMEOUT) as answer:
                status = answer.status_code
                if status != 200:
                    passing = status >= 500 or status in PASSING_STATUS
                    raise ItemFailed(f"{_named(address)} answered {status} {answer.reason}", retry=passing)
                for piece in answer.iter_content(64 * 1024):
                    content += piece
                    self._check_size(address, len(content))
        except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
            raise ItemFailed(f"{_named(address)} cannot be fetched: {_cause(error)}") from None
        except requests.RequestException as error:
            raise ItemFailed(f"{_named(address)} cannot be fetched: {_cause(error)}", retry=True) from None
        return bytes(content)

    def _check_size(self, source: str, size: int) -> None:
        if size > self._limit:
            limit = self.given["max_mb"]
            raise ItemFailed(f"{_named(source)} has more than {limit:g} MiB, or unpacks to more: see params.max_mb")

    # How bytes become bars

    def _read(self, sources: Sequence[str], freq: str) -> Tables:
        """The bars in ``sources``, by symbol; under "" where a file holds one symbol. Raises ItemFailed."""
        import pandas as pd

        tables = []
        for source in sources:
            content = self._bytes(source)
            read = self._parquet if content.startswith(b"PAR1") else self._csv
            columns = read(content, source, freq)
            try:
                tables.append(self._bars(columns, freq))
            except ValueError as error:
                raise ItemFailed(f"{_named(source)}: {error}") from None
        table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
        if not self._symbol_column:
            return {"": table}
        return {
            str(symbol): bars.drop(columns="symbol") for symbol, bars in table.groupby("symbol", sort=False) if symbol
        }

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

    def _csv(self, content: bytes, source: str, freq: str) -> dict[str, pd.Series[Any]]:
        import pandas as pd

        encoding = self.given["encoding"]
        try:
            text = content.decode(encoding).lstrip("\ufeff\r\n")
        except UnicodeDecodeError as error:
            raise ItemFailed(f"{_named(source)} is not {encoding} ({error.reason}): see params.encoding") from None
        first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
        delimiter = self.given.get("delimiter") or max(",;\t|", key=first_line.count)
        try:
            header = next(csv.reader([first_line], delimiter=delimiter, skipinitialspace=True), [])
            places = {field: header.index(name) for field, name in self._match(header, source, freq).items()}
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
            raise ItemFailed(f"{_named(source)} cannot be read as CSV: {error}") from None
        return {field: table[place] for field, place in places.items()}

    def _parquet(self, content: bytes, source: str, freq: str) -> dict[str, pd.Series[Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            names = self._match(file.schema_arrow.names, source, freq)
            batches, size = [], 0
            # In batches, because a footer does not tell truly how much comes out of a file.
            for batch in file.iter_batches(batch_size=8192, columns=sorted(set(names.values()))):
                size += batch.nbytes
                self._check_size(source, size)
                batches.append(batch)
            table = pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
            return {field: _from_arrow(field, table.column(name)) for field, name in names.items()}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ItemFailed(f"{_named(source)} cannot be read as Parquet: {error}") from None

    def _match(self, names: Sequence[str], source: str, freq: str) -> dict[str, str]:
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
                f"{_named(source)} lacks columns: {', '.join(missing)}; it has: {have}. "
                'Name them with params.columns, such as {"close": "Adj Close"}'
            )
        # Exports of intraday bars often have the day and the time of day apart.
        if freq in INTRADAY and "datetime" not in given and _plain(found["datetime"]) in DAYS:
            times = [plain[alias] for alias in TIMES if alias in plain]
            found |= {"time": times[0]} if times else {}
        return found


def _is_address(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def _check_path(path: str, many: bool) -> None:
    """``many``: whether a column names the symbol. Raises FieldError."""
    if not path.strip():
        raise FieldError("params.path", "is empty: give a folder, a glob, a file, or an address with {symbol}")
    if many and "{symbol}" in path:
        raise FieldError("params.path", f"{shown(path)} has {{symbol}} although symbol_column is given: one of the two")
    if not _is_address(path):
        if "://" in path:
            raise FieldError("params.path", f"{shown(path)} is neither a path nor an http or https address")
        return
    try:
        parts = urlsplit(path)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or "{symbol}" in parts.netloc:
        raise FieldError("params.path", f"{shown(path)} is not an address with a host of its own")
    if not many and "{symbol}" not in path:
        raise FieldError("params.path", f"{shown(path)} has no {{symbol}} and no symbol_column is given")


def _check_date_format(text: str) -> None:
    """Raises FieldError for one with which a date could not be written and read back."""
    day = dt.datetime(2021, 3, 4, tzinfo=dt.UTC)
    try:
        read = dt.datetime.strptime(day.strftime(text), text).date()
    except ValueError:
        read = None
    if read != day.date():
        raise FieldError("params.date_format", f"{shown(text)} is not a format of dates like %d/%m/%Y")


def _matches(pattern: str) -> list[Path]:
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return [path for path in map(Path, sorted(found)) if path.is_file()]


def _stem(file: Path) -> str:
    """``file``'s name without its suffixes; a symbol's own dot, as in 000001.SZ.csv, stays."""
    name = file.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def _named(source: str) -> str:
    """``source`` as messages show it: passwords and keys stand before the host and behind the path."""
    if not _is_address(source):
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _unreadable(source: str, error: OSError | ValueError) -> ItemFailed:
    passing = isinstance(error, OSError) and error.errno in PASSING_ERRNO
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ItemFailed(f"{_named(source)} cannot be read: {reason}", retry=passing)


def _cause(error: BaseException) -> str:
    """The system's reason at the bottom of ``error``, else its class in words; requests' own texts show the address."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    inner: BaseException | None = error
    while inner is not None:
        words = getattr(inner, "strerror", None) or words
        inner = inner.__cause__ or inner.__context__
    return words


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
