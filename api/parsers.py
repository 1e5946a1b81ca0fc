"""JSON bodies as this API takes them: UTF-8, finite numbers, integers of 64 bits, storable texts, bounded depth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from rest_framework.parsers import JSONParser

from nodes.protocol import FieldError

MAX_DEPTH = 32
"""Containers inside containers. Python's own limit differs by version, and what was read must be written again."""
LEAST, MOST = -(2**63), 2**63 - 1
"""What fits in 64 bits."""

# Only escapes can bring these in: the decoder refuses raw control characters, and UTF-8 has no surrogates.
_SUSPECT_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def read_json(raw: bytes) -> Any:
    """The value in ``raw``. Raises FieldError: on ``body``, or on the path of the number or text that is refused."""
    suspect = _SUSPECT_ESCAPE.search(raw) is not None

    def integer(text: str) -> int | float:
        nonlocal suspect
        # A 64-bit number has 19 digits; longer ones are never converted, as that takes quadratic time.
        value = int(text) if len(text) <= 20 else math.inf
        suspect = suspect or not LEAST <= value <= MOST
        return value

    def real(text: str) -> float:
        nonlocal suspect
        value = float(text)
        suspect = suspect or not math.isfinite(value)
        return value

    try:
        value = json.loads(raw.decode(), parse_int=integer, parse_float=real, parse_constant=real)
    except UnicodeDecodeError as error:
        raise FieldError("body", f"is not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise FieldError("body", f"is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise FieldError("body", _TOO_DEEP) from None
    _check_depth(value)
    if suspect:
        for path, part in _leaves(value, ()):
            _check_leaf(".".join(path) or "body", part)
    return value


_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise FieldError("body", _TOO_DEEP)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield path, name
            yield from _leaves(child, (*path, name))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _leaves(child, (*path, str(number)))
    else:
        yield path, value


def _check_leaf(field: str, value: Any) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise FieldError(field, "holds a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise FieldError(field, "holds half a surrogate pair, which is no character")
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(field, "is not a finite number of 64 bits")
    elif isinstance(value, int) and not LEAST <= value <= MOST:
        raise FieldError(field, f"{value} does not fit in 64 bits")


class StrictJSON(JSONParser):
    """``read_json`` for DRF; whatever charset the header names, JSON is UTF-8."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        return read_json(stream.read())
