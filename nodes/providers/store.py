"""Bars from the parent's own table ``kline``: they come with the shard, as a file (``Executor.reads``)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nodes.executors.base import ItemFailed
from nodes.providers.base import Provider, between
from nodes.providers.tables import FREQS

if TYPE_CHECKING:
    import pandas as pd


class Store(Provider):
    name = "store"
    freqs = FREQS

    def bars(self, symbol: str, freq: str, start: dt.date | None, end: dt.date | None) -> pd.DataFrame:
        if not self.input:
            # Work handed to a node directly, or run without a parent: another node may have a parent.
            raise ItemFailed(
                "source 'store' needs bars of a parent, and none came with this work: name another source", retry=True
            )
        tables = _tables(self.input)
        if symbol not in tables:
            raise ItemFailed(f"{symbol}: the parent's table kline has no bars of it with freq {freq}")
        return between(tables[symbol], start, end)


@lru_cache(maxsize=1)  # the items of a shard share a file, and each shard has its own
def _tables(file: str) -> Mapping[str, pd.DataFrame]:
    import pyarrow as pa

    try:
        with pa.OSFile(file) as source:
            frame: Any = pa.ipc.open_file(source).read_all().to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise ItemFailed(f"the bars that came with this work cannot be read: {error}", retry=True) from None
    return {
        str(symbol): bars.drop(columns="symbol").reset_index(drop=True)
        for symbol, bars in frame.groupby("symbol", sort=False)
    }
