"""The search of an ``optimization`` in one process, one trial after the other, to compare a run's trials with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nodes.executors.optimization import Optimization
from nodes.optimizing.advice import Advice, Told
from nodes.optimizing.searching import Search


def alone(params: dict[str, Any], fails: Collection[int] = ()) -> list[dict[str, Any]]:
    """The params of all trials, of which those numbered ``fails`` come to nothing."""
    checked = Optimization.check(params)
    search = Search.of(checked)
    made, executor = list(search.first()), Optimization(checked)
    advice = Advice(search)
    for each in made:
        advice.known(each)
    names = Optimization.dataset.names
    ended: dict[int, Told | None] = {}
    for number in range(search.total()):
        rows: Any = executor.run({"trial": number, "params": made[number]})
        row = dict(zip(names, rows[0], strict=True))
        ended[number] = None if number in fails else Told(row["value"], row["violation"])
        while (following := advice.next(ended)) is not None:
            made.append(following)
    return made
