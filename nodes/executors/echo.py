"""The smallest executor: gives back its items. Benchmarks and tests of faults use it; copy it to start another."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from nodes.executors.base import Column, Dataset, Executor, Item, ItemFailed, Param, Rows, item_key

SLOWNESS = "ECHO_SLOWNESS"
"""Environment variable: its children play machines that are so many times slower."""


class Echo(Executor):
    """``rows`` rows per item: the item as text, a number from 0, and both joined by a colon."""

    type = "echo"
    title = "Gives back its items; can wait, fail and crash on request"
    params = (
        Param("rows", "integer", 1, "Rows per item.", minimum=0, maximum=100_000),
        Param("seconds", "number", 0.0, "Sleep per item.", minimum=0, maximum=86_400),
        Param("log", "string", None, "Text printed for each item."),
        Param("fail", "string", None, "Message with which every item fails; another attempt may follow."),
        Param("fail_items", "list", None, "Keys of items that fail for good."),
        Param("crash_items", "list", None, "Keys of items that kill their worker process, as a fault in C code would."),
    )
    dataset = Dataset(
        table="echo",
        columns=(Column("item", "string"), Column("number", "int64"), Column("value", "string")),
        key=("item", "number"),
    )

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.rows: int = params.get("rows", 1)
        self.seconds: float = params.get("seconds", 0.0) * float(os.environ.get(SLOWNESS, 1))
        self.fail_items = frozenset(map(str, params.get("fail_items", ())))
        self.crash_items = frozenset(map(str, params.get("crash_items", ())))

    def run(self, item: Item) -> Rows:
        key = item_key(item)
        if key in self.crash_items:
            # No exception, no clean-up, no exit handlers: what the pool sees is a worker that is gone.
            os._exit(70)
        if self.seconds:
            time.sleep(self.seconds)
        if self.given.get("log"):
            print(self.given["log"])
        if key in self.fail_items:
            raise ItemFailed(f"{key} is in fail_items")
        if self.given.get("fail"):
            raise ItemFailed(self.given["fail"], retry=True)
        text = json.dumps(item, separators=(",", ":")) if isinstance(item, dict) else key
        return [(text, number, f"{text}:{number}") for number in range(self.rows)]
