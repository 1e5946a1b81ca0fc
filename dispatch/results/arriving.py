"""Results that this process itself brings for a node: an entry as an agent would send it, checked as strictly."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from dispatch.results import datasets, spool
from nodes import executors, messages
from nodes.protocol import INLINE_ROWS, SEGMENT_BYTES_LIMIT


def read_entry(type: str, made: dict[str, Any]) -> messages.Entry:
    """``made`` is a report's entry (see ``nodes.protocol``) with its rows inline; many become a segment in the spool.

    Raises FieldError for what cannot be a result of ``type``, TooLarge, and StorageFull.
    """
    rows = made.get("rows") or []
    if len(rows) > INLINE_ROWS:
        from nodes.executors.rows import encode

        table = datasets.from_rows(executors.get(type).dataset, rows)
        segment = spool.receive([encode(table)], settings.CASCADE.spool, limit=SEGMENT_BYTES_LIMIT)
        made = {**made, "rows": None, "segment": segment.sha256, "offset": 0}
    return messages.read_report({"reports": [made]})[0]
