"""What came of many worlds: numbers, and each broken promise with its seed and its last events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Summary:
    """``seconds`` are simulated, ``took`` real ones. ``broken``: {"seed", "promise", "trace"} each."""

    kind: str = "plain"
    seeds: int = 0
    seconds: float = 0.0
    took: float = 0.0
    messages: int = 0
    commits: int = 0
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    broken: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""
    """Of all its worlds, in their order."""

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def crashes(self) -> int:
        return sum(self.faults[f"{who} killed"] for who in ("parent", "relay", "child"))

    def add(self, other: Summary) -> None:
        for name in ("seeds", "seconds", "messages", "commits", "rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)
        self.reached.update(other.reached)
        self.broken += other.broken

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(self.faults), "reached": dict(self.reached)}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Summary:
        return cls(**{**plain, "faults": Counter(plain["faults"]), "reached": Counter(plain["reached"])})

    def text(self) -> str:
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        what = "trees" if self.kind == "tree" else "worlds"
        lines = [
            f"{self.seeds} {what}, {self.hours:.1f} simulated hours in {self.took:.0f} s, {self.messages} messages, "
            f"{self.commits} commits, {self.rows} rows saved",
            f"faults: {faults or 'none'}",
        ]
        for each in self.broken:
            lines += ["", *each["trace"], "", f"seed {each['seed']} breaks promise {each['promise']}"]
            lines += [f"again: make sim SEED={each['seed']}"]
        lines.append("" if self.broken else "every promise was kept")
        return "\n".join(lines)
