"""What the tests of type custom call."""

from __future__ import annotations

import os
import urllib.request
from typing import Any


def fetch(item: str, base: str) -> dict[str, Any]:
    """The length of what the gated server has for ``item``; raises for what it has not."""
    with urllib.request.urlopen(f"{base}/page/{item}", timeout=60) as answer:
        return {"length": len(answer.read())}


def talk(item: str, base: str) -> dict[str, Any]:
    """Prints before it asks the gated server and after."""
    print(f"{item} begins")
    found = fetch(item, base)
    print(f"{item} ends")
    return found


def die(item: str, base: str) -> dict[str, Any]:
    """Prints, asks the gated server, and takes its process along."""
    print(f"{item} is about to die")
    fetch(item, base)
    os._exit(70)
