"""Indicators computed, by one of two engines with the same numbers: ``talib`` (C) and ``pandas`` (numpy and pandas).

The same: NaN on the same bars, and elsewhere no further apart than a part in 1e8 of the larger of the number itself and
of what it was computed from (prices for an average, 100 for a percentage). For workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from nodes.indicators.table import TABLE, Indicator
from nodes.indicators.windows import Array

ENGINES = ("talib", "pandas")


class NoTalib(ImportError):
    """TA-Lib was asked for and is not installed."""


@cache
def _talib() -> Any:
    """TA-Lib's module, or None."""
    try:
        return import_module("talib")
    except ImportError:
        return None


def resolved(engine: str) -> str:
    """The engine that ``auto``, ``talib`` or ``pandas`` means here. Raises NoTalib."""
    if engine == "auto":
        return "pandas" if _talib() is None else "talib"
    if engine == "talib" and _talib() is None:
        raise NoTalib("TA-Lib is not installed here: pip install TA-Lib")
    return engine


@cache
def _function(path: str) -> Any:
    file, _, name = path.partition(":")
    return getattr(import_module(f"nodes.indicators.{file}"), name)


def compute(indicator: Indicator, bars: Mapping[str, Array], values: Sequence[Any], engine: str) -> tuple[Array, ...]:
    """One array for each of its outputs, as long as the bars; ``values`` are its params in order.

    ``bars``: open, high, low, close, volume as float64 without NaN, as far as it needs them.
    """
    inputs = [bars[name] for name in indicator.inputs]
    found = None
    if engine == "talib" and indicator.talib and len(inputs[0]):
        found = _by_talib(indicator, inputs, values)
    if found is None:
        # Short arrays bring empty windows, and prices of nothing divide by it: both are meant.
        with np.errstate(all="ignore"):
            found = _function(indicator.function)(*inputs, *values)
    return found if isinstance(found, tuple) else (found,)


def named(name: str, bars: Mapping[str, Array], *values: Any, engine: str = "auto") -> tuple[Array, ...]:
    """As ``compute``, by name; params left out are the defaults."""
    indicator = TABLE[name]
    rest = tuple(param.default for param in indicator.params[len(values) :])
    return compute(indicator, bars, (*values, *rest), resolved(engine))


def _by_talib(indicator: Indicator, inputs: Sequence[Array], values: Sequence[Any]) -> Any:
    """None where the TA-Lib installed here lacks the function, or (older ones, for a period of 1) refuses a param."""
    function = getattr(_talib(), indicator.talib, None)
    if function is None:
        return None
    keywords = dict(zip(indicator.keywords, values, strict=True))
    with contextlib.suppress(Exception):
        return function(*inputs, **keywords, **dict(indicator.fixed))
    return None
