"""What came of a run of ``python -m tests.chaos``: items as sets, kills by kind, other figures; as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

BEGIN = "<!-- the table that `make chaos` wrote begins here -->"
END = "<!-- and ends here -->"


@dataclass(frozen=True)
class Items:
    """What became of items that each have an id of their own, at the end of a scenario.

    ``submitted``: of runs that should have ended. ``attempted``: some worker began them. ``acknowledged``: a child got
    a receipt for them. ``saved``: how often each is in the result store. ``ended``: failed, quarantined or cancelled,
    and said so.
    """

    submitted: frozenset[str]
    attempted: frozenset[str]
    acknowledged: frozenset[str]
    saved: Mapping[str, int]
    ended: frozenset[str] = frozenset()

    @property
    def lost(self) -> set[str]:
        """Acknowledged and not saved, or neither saved nor in any other end."""
        return {*(self.acknowledged - self.saved.keys()), *(self.submitted - self.saved.keys() - self.ended)}

    @property
    def duplicated(self) -> set[str]:
        """Saved more than once, or by nobody's wish."""
        return {id for id, count in self.saved.items() if count > 1} | (self.saved.keys() - self.submitted)


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``zero``: anything but 0 is a promise broken."""

    value: float | str
    unit: str = ""
    zero: bool = False

    def __str__(self) -> str:
        if isinstance(self.value, str):
            text = self.value
        elif self.value == int(self.value):
            text = f"{int(self.value):,}"
        else:
            text = f"{self.value:,.1f}" if abs(self.value) >= 10 else f"{self.value:.3g}"
        return f"{text} {self.unit}".rstrip()


@dataclass
class Report:
    """Filled by the parts; the scenarios of a part add up. ``seed`` is that of all that is left to chance."""

    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Figure] = field(default_factory=dict)
    peers: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    """Peer -> what was looked at -> (here, there)."""
    problems: list[str] = field(default_factory=list)
    """Promises broken, and parts that broke off."""

    def chance(self, name: str) -> Random:
        """The random numbers of one part or scenario: the same again for the same seed."""
        return Random(f"{self.seed} {name}")

    def items(self, scenario: str, items: Items) -> None:
        """The account of one scenario; what is lost or duplicated in it becomes a problem with its first ids."""
        self.counts["submitted"] += len(items.submitted)
        self.counts["attempted"] += len(items.attempted)
        self.counts["acknowledged"] += len(items.acknowledged)
        self.counts["saved"] += len(items.saved)
        for word, ids in (("lost", items.lost), ("duplicated", items.duplicated)):
            self.counts[word] += len(ids)
            if ids:
                self.problem(f"{scenario}: {len(ids)} {word}, such as {', '.join(sorted(ids)[:5])}")

    def kill(self, kind: str, times: int = 1) -> None:
        """Something was ended, frozen or broken on purpose; ``kind`` as the table shows it: "parent, kill -9"."""
        self.kills[kind] += times

    def figure(self, name: str, value: float | str, unit: str = "", *, zero: bool = False) -> None:
        """One number of its own, under ``name`` as the table shows it; said again, the last one stands.

        ``zero``: it must be 0, as with answers of 5xx.
        """
        self.figures[name] = Figure(value, unit, zero)
        if zero and value != 0:
            self.problem(f"{name}: {self.figures[name]}, which should be 0")

    def add(self, name: str, number: float, unit: str = "", *, zero: bool = False) -> None:
        """As ``figure``, on top of what was said under that name before."""
        earlier = self.figures[name].value if name in self.figures else 0
        assert not isinstance(earlier, str), name
        self.figures[name] = Figure(earlier + number, unit, zero)
        if zero and number:
            self.problem(f"{name}: {number:g} more, which should be 0")

    def most(self, name: str, number: float, unit: str = "") -> None:
        """As ``figure``, unless what was said under that name before is higher."""
        earlier = self.figures[name].value if name in self.figures else number
        assert not isinstance(earlier, str), name
        self.figures[name] = Figure(max(earlier, number), unit)

    def beside(self, peer: str, name: str, here: object, there: object) -> None:
        """What came of the same thing here and with a peer, such as "Celery 5.6 with Redis"."""
        self.peers.setdefault(peer, {})[name] = (str(here), str(there))

    def problem(self, text: str) -> None:
        """A promise broken, or a part that could not do what it is for; the exit status will say so."""
        self.problems.append(text)

    @property
    def broken(self) -> bool:
        return bool(self.problems)

    def markdown(self) -> str:
        """All of it, as it goes into the documentation."""
        rows = [(f"items {word}", f"{self.counts[word]:,}") for word in _ITEMS]
        rows += [(name, str(figure)) for name, figure in self.figures.items()]
        parts = [_table(("", ""), rows)]
        if self.kills:
            kills = sorted(self.kills.items())
            total = [("**together**", f"{sum(self.kills.values()):,}")]
            parts.append(_table(("ended, frozen or broken", "times"), [*((k, f"{n:,}") for k, n in kills), *total]))
        for peer, seen in self.peers.items():
            parts.append(_table(("", "Cascade", peer), [(name, *both) for name, both in seen.items()]))
        if self.problems:
            parts.append("\n".join(["**Broken:**", "", *(f"- {text}" for text in self.problems)]))
        return "\n\n".join(parts)


_ITEMS = ("submitted", "attempted", "acknowledged", "saved", "lost", "duplicated")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" if not number else "---:" for number in range(len(head))), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write(file: Path, text: str) -> None:
    """Puts ``text`` between the marks of ``file``. Raises ValueError where it has none."""
    content = file.read_text()
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no place for the table: two lines, {BEGIN} and {END}")
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
