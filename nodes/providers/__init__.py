"""Sources of market data. To add one: write a file beside this one and add its line to PROVIDERS."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from nodes.protocol import FieldError
from nodes.providers.base import Provider

PROVIDERS = {
    "akshare": "nodes.providers.akshare:AkShare",
    "files": "nodes.providers.files:Files",
    "sample": "nodes.providers.sample:Sample",
    "store": "nodes.providers.store:Store",
    "tdx": "nodes.providers.tdx:Tdx",
    "yfinance": "nodes.providers.yfinance:YFinance",
}


@cache
def get(source: str) -> type[Provider]:
    """The provider called ``source``. Raises FieldError on ``params.source`` for an unknown one."""
    if source not in PROVIDERS:
        raise FieldError("params.source", f"{source!r} is not a source; known are: {', '.join(sorted(PROVIDERS))}")
    module, _, name = PROVIDERS[source].partition(":")
    provider: type[Provider] = getattr(import_module(module), name)
    return provider
