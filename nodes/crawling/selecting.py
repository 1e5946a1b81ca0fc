"""CSS selectors that a run asks for: ``price`` -> ``.offer .price``, ``image`` -> ``img.main@src``, ``tags`` ->
``a.tag[]``.

``@name`` at the end takes an attribute instead of the text, ``[]`` behind that takes all that fit instead of the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from nodes.executors.base import shown
from nodes.protocol import FieldError

MOST = 50
"""Selectors of one run."""
MOST_VALUES = 200
"""Of one selector on one page."""
VALUE_LIMIT = 10_000
FIELD = "params.select"
_ADDRESSES = frozenset({"href", "src"})
_FORM = re.compile(r"(?P<css>.*?)(?:@(?P<attribute>[\w:.-]+))?(?P<all>\[\])?", re.DOTALL)


@dataclass(frozen=True)
class Selector:
    name: str
    css: str
    attribute: str
    all: bool

    def values(self, tree: Any, base: str) -> str | list[str] | None:
        """What it finds in ``tree``; addresses (href, src) are made whole by ``base``. None: nothing fits."""
        found: list[str] = []
        for node in tree.css(self.css):
            if self.attribute:
                value = node.attributes.get(self.attribute)
                if value is None:
                    continue
                value = _whole(value, base) if self.attribute in _ADDRESSES else value
            else:
                value = " ".join(node.text(separator=" ").split())
            found.append(value[:VALUE_LIMIT])
            if not self.all:
                return found[0]
            if len(found) == MOST_VALUES:
                break
        return found if self.all else None


def read(given: Mapping[str, Any]) -> list[Selector]:
    """The selectors of ``params.select``. Raises FieldError naming one that is none, and what is allowed."""
    if not given:
        return []
    if len(given) > MOST:
        raise FieldError(FIELD, f"has {len(given)} selectors; at most {MOST} are allowed")
    # 4 MB that a parent without such runs does not need.
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError

    tree = LexborHTMLParser("<p></p>")
    selectors = []
    for name, text in given.items():
        field = f"{FIELD}.{name}" if name.isprintable() and 0 < len(name) <= 60 else FIELD
        if field == FIELD:
            raise FieldError(FIELD, f"{shown(name)} is not a name of 1 to 60 printable characters")
        if not isinstance(text, str):
            raise FieldError(field, f"{shown(text)} is not a CSS selector like .price, img@src or a.tag[]")
        parts = _FORM.fullmatch(text.strip())
        assert parts is not None
        try:
            tree.css(parts["css"])
        except SelectolaxError:
            raise FieldError(
                field, f"{shown(text)} is not a CSS selector like .price, img@src (an attribute) or a.tag[] (all)"
            ) from None
        selectors.append(Selector(name, parts["css"], (parts["attribute"] or "").lower(), bool(parts["all"])))
    return selectors


def _whole(address: str, base: str) -> str:
    try:
        return urljoin(base, address.strip())
    except ValueError:
        return address
