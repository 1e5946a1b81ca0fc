"""Bars from CSV or Parquet files that the node can read: a folder, a glob, one file, or a path or http(s) address
with ``{symbol}`` in it.

From top to bottom: which sources hold a symbol, and how their bytes are fetched. ``tables`` makes bars of the bytes.
"""

from __future__ import annotations

import base64
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
from urllib.parse import quote, unquote, urlsplit

from nodes.addresses import named
from nodes.executors.base import ItemFailed, Param, shown
from nodes.fetching import Fetcher, FetchFailed, Limits, TooLarge
from nodes.protocol import FieldError
from nodes.providers.base import Provider, between
from nodes.providers.tables import FREQS, MEBIBYTE, Layout, check_layout, check_size

if TYPE_CHECKING:
    import pandas as pd

    Tables = dict[str, pd.DataFrame]

SUFFIXES = (".csv", ".csv.gz", ".parquet")
"""What a folder's files are called after the symbol."""
SECONDS = 3600.0
"""For one file by address; the shard's own time-out ends it before, as a rule."""
PASSING_ERRNO = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EHOSTDOWN}
"""What a mounted disk answers while it is away."""

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
        self._layout = Layout(params)
        self._limit = int(params["max_mb"] * MEBIBYTE)
        # What an address answers may change, so it is kept for this shard only.
        self._last: dict[tuple[Any, ...], Tables] = {} if self._remote else _LAST
        self._matched: dict[str, list[Path]] | None = None
        self._fetcher = Fetcher(Limits(max_bytes=self._limit, seconds=SECONDS))

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> None:
        _check_path(params["path"], bool(params.get("symbol_column")))
        check_layout(params)

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
        plain, headers = _without_password(address)
        try:
            return self._fetcher.get(plain, headers).content
        except TooLarge:
            self._check_size(address, self._limit + 1)
            raise
        except FetchFailed as error:
            raise ItemFailed(str(error), retry=error.retry) from None

    def _check_size(self, source: str, size: int) -> None:
        check_size(_named(source), size, self.given["max_mb"])

    def _read(self, sources: Sequence[str], freq: str) -> Tables:
        """The bars in ``sources``, by symbol; under "" where a file holds one symbol. Raises ItemFailed."""
        import pandas as pd

        tables = [self._layout.bars(self._bytes(source), _named(source), freq) for source in sources]
        table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
        if not self._symbol_column:
            return {"": table}
        return {
            str(symbol): bars.drop(columns="symbol") for symbol, bars in table.groupby("symbol", sort=False) if symbol
        }


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


def _without_password(address: str) -> tuple[str, dict[str, str]]:
    """``address`` and the headers that say what stood before its host."""
    parts = urlsplit(address)
    before, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, {}
    secret = base64.b64encode(unquote(before).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {secret}"}


def _matches(pattern: str) -> list[Path]:
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return [path for path in map(Path, sorted(found)) if path.is_file()]


def _stem(file: Path) -> str:
    """``file``'s name without its suffixes; a symbol's own dot, as in 000001.SZ.csv, stays."""
    name = file.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def _named(source: str) -> str:
    return named(source) if _is_address(source) else source


def _unreadable(source: str, error: OSError | ValueError) -> ItemFailed:
    passing = isinstance(error, OSError) and error.errno in PASSING_ERRNO
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ItemFailed(f"{_named(source)} cannot be read: {reason}", retry=passing)
