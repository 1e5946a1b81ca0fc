"""Bars from the files that a Tongdaxin (通达信) terminal keeps: its folder vipdoc, copied or mounted on the node.

The format has no official description. This follows what is published of it and what the open-source reader pytdx does
(pytdx/reader: daily_bar_reader, lc_min_bar_reader). Records have 32 bytes, little-endian:

.day        uint32 date as yyyymmdd, open, high, low, close; float32 amount; uint32 volume, reserved
.lc1, .lc5  uint16 day, uint16 minutes since midnight; float32 open, high, low, close, amount; uint32 volume, reserved
            day: year = n // 2048 + 2004, month = n % 2048 // 100, day of the month = n % 2048 % 100
"""

from __future__ import annotations

import datetime as dt
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.executors.base import ItemFailed, Param, shown
from nodes.protocol import FieldError
from nodes.providers.base import Provider, between

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RECORD = 32
SIZE_LIMIT = 256 * 1024 * 1024
"""Bytes of one file; a minute bar for each of 30 years' minutes has a seventh of it."""
MARKETS = ("sh", "sz", "bj")


@dataclass(frozen=True)
class Kind:
    """Where bars of one length are: ``vipdoc/<market>/<folder>/<market><code><suffix>``."""

    folder: str
    suffix: str
    daily: bool = False


DAY = Kind("lday", ".day", daily=True)
ONE = Kind("minline", ".lc1")
FIVE = Kind("fzline", ".lc5")
KINDS = {"1min": ONE, "5min": FIVE, "15min": FIVE, "30min": FIVE, "60min": FIVE, "D": DAY, "W": DAY, "M": DAY}
MADE_OF_FIVE = {"15min": 15, "30min": 30, "60min": 60}

_SYMBOL = re.compile(r"(?:([0-9]{6})\.(SH|SZ|BJ)|(SH|SZ|BJ)([0-9]{6})|([0-9]{6}))", re.IGNORECASE)
# Of codes without a market, by their beginning; the first that fits. 88 and 99 are the terminal's own indices.
_MARKET_OF = (
    ("sh", ("5", "6", "7", "90", "11", "204", "01", "02", "88", "99")),
    ("sz", ("00", "1", "20", "30", "39")),
    ("bj", ("4", "8", "92")),
)
# Prices of the other codes are in 1/100.
_IN_THOUSANDTHS = {"sh": ("01", "02", "1", "2", "5", "90"), "sz": ("1",), "bj": ()}


class Tdx(Provider):
    """Intraday bars are named by their end, in the exchange's own time (UTC+8), as the files have them."""

    name = "tdx"
    freqs = tuple(KINDS)
    params = (
        Param("path", "string", help="On the nodes: the terminal's folder vipdoc, which has the folders sh, sz, bj."),
        Param(
            "divisor",
            "integer",
            None,
            "Daily prices are in 1/divisor. Without it by the code: 1000 for funds, bonds and Shanghai's B shares, "
            "100 for all others.",
            choices=(100, 1000),
        ),
    )

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self._root = Path(str(params.get("path", ""))).expanduser()
        self._kind = KINDS.get(str(params.get("freq", "D")), DAY)

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> None:
        path = params["path"]
        if not path.strip() or not path.isprintable():
            raise FieldError("params.path", f"{shown(path)} is not a folder's path, such as /data/vipdoc")

    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        market, code = _place(symbol)
        kind = KINDS[freq]
        bars = self._frame(symbol, market, code, kind)
        if freq in ("W", "M"):
            from nodes.providers.resampling import of_days

            bars = of_days(symbol, bars, freq)
        elif freq in MADE_OF_FIVE:
            from nodes.providers.resampling import of_minutes

            bars = of_minutes(symbol, bars, MADE_OF_FIVE[freq])
        return between(bars, start, end)

    def symbols(self) -> list[str]:
        """By the names of the files for the freq that was asked for, as 600000.SH."""
        found = []
        for market in MARKETS:
            try:
                names = [file.name for file in (self._root / market / self._kind.folder).iterdir()]
            except (OSError, ValueError):
                continue
            pattern = re.compile(rf"{market}([0-9]{{6}}){re.escape(self._kind.suffix)}")
            found += [f"{match[1]}.{market.upper()}" for name in names if (match := pattern.fullmatch(name))]
        return sorted(found)

    def span(self, symbol: str) -> tuple[dt.date, dt.date] | None:
        """By the first and the last record of its file."""
        try:
            with open(self._file(*_place(symbol), self._kind), "rb") as file:
                count = file.seek(0, 2) // RECORD
                ends = []
                for number in (0, count - 1):
                    file.seek(number * RECORD)
                    ends.append(_date(file.read(4), daily=self._kind.daily))
        except (OSError, ValueError, struct.error, ItemFailed):
            return None
        return (ends[0], ends[1]) if ends[0] <= ends[1] else None

    def _file(self, market: str, code: str, kind: Kind) -> Path:
        return self._root / market / kind.folder / f"{market}{code}{kind.suffix}"

    def _frame(self, symbol: str, market: str, code: str, kind: Kind) -> pd.DataFrame:
        """All records of the file. Raises ItemFailed."""
        import pandas as pd

        content = self._content(symbol, market, code, kind)
        if rest := len(content) % RECORD:
            print(f"{symbol}: the file ends in the middle of a record; its last {rest} bytes are left out")
            content = content[: len(content) - rest]
        divisor = self.given.get("divisor") or _divisor(market, code)
        return pd.DataFrame(_days(content, divisor) if kind.daily else _minutes(content))

    def _content(self, symbol: str, market: str, code: str, kind: Kind) -> bytes:
        file = self._file(market, code, kind)
        try:
            if not self._root.is_dir():
                raise ItemFailed(f"{self._root} is not a folder on this node: see params.path", retry=True)
            with open(file, "rb") as opened:
                content = opened.read(SIZE_LIMIT + 1)
        except FileNotFoundError:
            raise ItemFailed(f"no file for {symbol!r}: {file} is not there") from None
        except (OSError, ValueError) as error:
            raise ItemFailed(f"{file} cannot be read: {error}", retry=isinstance(error, OSError)) from None
        if len(content) > SIZE_LIMIT:
            raise ItemFailed(f"{file} has more than {SIZE_LIMIT:,} bytes")
        return content


def _place(symbol: str) -> tuple[str, str]:
    """Market and code. Raises ItemFailed."""
    match = _SYMBOL.fullmatch(symbol)
    if match is None:
        raise ItemFailed(f"{shown(symbol)} is not a symbol such as 600000.SH, sh600000 or 600000")
    code = match[1] or match[4] or match[5]
    if market := match[2] or match[3]:
        return market.lower(), code
    for name, beginnings in _MARKET_OF:
        if code.startswith(beginnings):
            return name, code
    raise ItemFailed(f"{symbol!r} may be of any market: say which, such as {symbol}.SH, .SZ or .BJ")


def _divisor(market: str, code: str) -> int:
    return 1000 if code.startswith(_IN_THOUSANDTHS[market]) else 100


def _date(first: bytes, *, daily: bool) -> dt.date:
    """The date at the beginning of a record. Raises ValueError and struct.error where there is none."""
    if daily:
        (number,) = struct.unpack("<I", first)
        return dt.date(number // 10_000, number // 100 % 100, number % 100)
    (number,) = struct.unpack("<H", first[:2])
    return _packed_date(number)


def _packed_date(number: int) -> dt.date:
    return dt.date(number // 2048 + 2004, number % 2048 // 100, number % 2048 % 100)


def _days(content: bytes, divisor: int) -> dict[str, NDArray[Any]]:
    import numpy as np

    fields = [("date", "<u4"), *((name, "<u4") for name in ("open", "high", "low", "close"))]
    records = np.frombuffer(content, dtype=[*fields, ("amount", "<f4"), ("volume", "<u4"), ("reserved", "<u4")])
    dates = _dates(records["date"], lambda number: dt.date(number // 10_000, number // 100 % 100, number % 100))
    prices = {name: records[name].astype("float64") / divisor for name in ("open", "high", "low", "close")}
    return {"datetime": dates, **prices, "volume": records["volume"].astype("float64")}


def _minutes(content: bytes) -> dict[str, NDArray[Any]]:
    import numpy as np

    fields = [("day", "<u2"), ("minute", "<u2"), *((name, "<f4") for name in ("open", "high", "low", "close"))]
    records = np.frombuffer(content, dtype=[*fields, ("amount", "<f4"), ("volume", "<u4"), ("reserved", "<u4")])
    days = _dates(records["day"], _packed_date)
    times = days + records["minute"].astype("timedelta64[m]").astype("timedelta64[us]")
    times[records["minute"] >= 24 * 60] = np.datetime64("NaT", "us")
    # No exchange has finer prices; what comes after is how a float32 writes them.
    prices = {name: np.round(records[name].astype("float64"), 3) for name in ("open", "high", "low", "close")}
    return {"datetime": times, **prices, "volume": records["volume"].astype("float64")}


def _dates(numbers: NDArray[np.unsignedinteger[Any]], read: Any) -> NDArray[np.datetime64]:
    """``numbers``, of which many may be alike, as datetime64[us]; NaT for those that are no date."""
    import numpy as np

    @cache
    def date(number: int) -> Any:
        try:
            return np.datetime64(read(number), "us")
        except ValueError:
            return np.datetime64("NaT", "us")

    return np.array([date(number) for number in numbers.tolist()], dtype="datetime64[us]")
