"""Who a server is, whatever it is called and whoever its parent is: an id made once, kept in its data folder."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from nodes.protocol import FieldError

FILE = "node_id"
_SHAPE = re.compile(r"[0-9a-f]{32}\Z")


def own(folder: Path) -> str:
    """32 hex digits, the same at every start. Raises FieldError for a file that holds something else."""
    file = folder / FILE
    try:
        return check(file.read_text().strip())
    except FileNotFoundError:
        pass
    folder.mkdir(parents=True, exist_ok=True)
    made = uuid.uuid4().hex
    whole = folder / f"{FILE}.{made}"
    whole.write_text(made + "\n")
    # Two processes of one server may be starting: the first one's is the id, and nobody sees it half written.
    with suppress(FileExistsError):
        os.link(whole, file)
    whole.unlink()
    return check(file.read_text().strip())


def check(value: str) -> str:
    """``value``, if it can be a node's id. Raises FieldError."""
    if not _SHAPE.match(value):
        raise FieldError("node_id", f"{value!r} is not 32 hex digits")
    return value
