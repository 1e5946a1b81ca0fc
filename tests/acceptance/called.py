"""What the tests of type custom call."""

from __future__ import annotations

import urllib.request
from typing import Any


def fetch(item: str, base: str) -> dict[str, Any]:
    """The length of what the gated server has for ``item``; raises for what it has not."""
    with urllib.request.urlopen(f"{base}/page/{item}", timeout=60) as answer:
        return {"length": len(answer.read())}
