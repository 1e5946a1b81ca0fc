"""What the items do: each notes that it was begun, and brings rows with its own unique id."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any


def attempt(item: str, log: str, rows: int = 1, pad: int = 0, seconds: float = 0.0) -> list[dict[str, Any]]:
    """``rows`` rows of ``item``, each ``pad`` characters longer than it need be, which do not compress to nothing; what
    has over 60,000 does not travel inline.
    """
    note(Path(log), item)
    time.sleep(seconds)
    return [{"id": item, "pad": secrets.token_hex(pad // 2)} for _ in range(rows)]


def note(log: Path, line: str) -> None:
    """One line in one write, so that many processes may do it at once and a kill -9 leaves a whole line or none."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)
