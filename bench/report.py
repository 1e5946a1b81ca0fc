"""Taking turns, medians, tables, and what machine this is."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median

from cascade import __version__

Measure = Callable[[], float]


@dataclass(frozen=True)
class Sample:
    """Values of one system, one per round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    def text(self, decimals: int) -> str:
        least, most = min(self.values), max(self.values)
        return f"{self.median:,.{decimals}f} [{least:,.{decimals}f}–{most:,.{decimals}f}]"


def interleaved(systems: Mapping[str, Measure], rounds: int) -> dict[str, Sample]:
    """Measures A B C A B C …, so that whatever else the machine does meets all of them alike."""
    values: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, measure in systems.items():
            values[name].append(measure())
    return {name: Sample(tuple(taken)) for name, taken in values.items()}


@dataclass
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Floors that were not reached, in words."""

    def add(self, *cells: str) -> None:
        self.rows.append(list(cells))

    def judge(self, what: str, good: bool) -> str:
        """A cell that says whether a floor was reached; remembers one that was not."""
        if not good:
            self.missed.append(what)
        return "yes" if good else "NO"

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]

        def row(cells: list[str]) -> str:
            # The first column is words, the others are numbers.
            padded = [
                cells[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
            ]
            return f"| {' | '.join(padded)} |"

        rule = f"|{'|'.join(['-' * (widths[0] + 2), *('-' * (width + 1) + ':' for width in widths[1:])])}|"
        return "\n".join([f"## {self.title}", "", row(self.columns), rule, *map(row, self.rows)])


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("django", "daphne", "duckdb", "websockets", "distributed")
    )
    return (
        f"Cascade {__version__} on {cores} cores, Python {platform.python_version()},"
        f" {platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f}; {packages}"
    )
