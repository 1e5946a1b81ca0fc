"""What a decision of the allocator is made from, and what it says: demands and offers, grants and refusals. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dispatch.rates import Bucket, Lanes


def pace_key(task_type: str, run: int) -> str:
    """Where a node keeps the seconds per item of one run."""
    return f"{task_type}@{run}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Items [start, stop) of a run. ``shard`` is set when they were cut before; ``item`` when a quota names it.

    ``rate`` is the key of the rate limit that holds for all of them. ``rest`` is where the shard ends that this is
    only the first part of (0: it is all of it). ``wait`` is in how many seconds it is worth another look.
    """

    start: int
    stop: int
    shard: int | None = None
    attempt: int = 1
    item: str = ""
    rate: str = ""
    rest: int = 0
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """A run with work to give. Items [cut, count) are uncut; ``returned`` are pieces that came back.

    ``marked`` names the uncut items, ascending, that some node has a quota for: each is cut as a shard of its own.
    ``served`` is the number of slots the run has now, ``elsewhere`` of these on other nodes than the parent's own
    worker; ``age`` orders equals, smaller first. ``waited`` is for how many seconds the run has been there, ``begun``
    whether it ever was with a node.

    ``rate`` is the key whose limit holds for all items. ``stretches``, where the key depends on the item, are
    (start, stop, key) of the first uncut items, key "" for no limit; what is behind them is not looked at yet.
    """

    run: int
    type: str
    cut: int
    count: int
    priority: int = 5
    served: int = 0
    age: float = 0.0
    shard_size: int = 0
    balancer: str = "most_free"
    labels: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, str] = field(default_factory=dict)
    returned: Sequence[Piece] = ()
    marked: Sequence[tuple[int, str]] = ()
    fallback: str = "allowed"
    elsewhere: int = 0
    waited: float = 0.0
    begun: bool = False
    hands: str = ""
    """Which nodes can run it, beside having its type: "outside", clients with code of their own; "line", those with a
    line to the parent; "" all."""
    rate: str = ""
    stretches: Sequence[tuple[int, int, str]] | None = None
    ceilings: Sequence[str] = ()
    """Names of ``Terms.ceilings`` that hold for it: a run that a node above gave has slots there, and no more here."""
    held: Mapping[int, int] = field(default_factory=dict)
    """Node -> slots it has there; only of a run with ceilings."""
    stopped: str = ""
    """Why it is given to nobody now."""
    measured: int = 0
    """The run that it is a piece of, above: what was measured of other pieces says how fast this one goes. 0: none."""
    tokens: bool = False
    """It came with tokens of a rate limit of a node above."""

    @property
    def rated(self) -> bool:
        """A rate limit holds for it, or may hold for some of its items."""
        return bool(self.rate) or self.stretches is not None or self.tokens


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """Slots given first, and at most (None: no limit)."""

    slots: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A node and what it holds now. ``quotas`` and ``in_use`` are keyed by (task type, item or "").

    ``cpu`` and ``memory``, and above which it gets nothing new, are percent. A ``patient`` node is silent while it
    works, so nothing is queued with it. ``embedded`` is the parent's own worker.
    """

    node: int
    name: str
    capacity: int
    types: frozenset[str]
    in_use: Mapping[tuple[str, str], int] = field(default_factory=dict)
    quotas: Mapping[tuple[str, str], QuotaRule] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    online: bool = True
    draining: bool = False
    cooling: str = ""
    """Why it gets nothing for a while."""
    weight: float = 1.0
    cpu: float | None = None
    memory: float | None = None
    max_cpu: float = 100.0
    max_memory: float = 100.0
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per item, measured: by task type, and by ``pace_key`` of the newest runs."""
    last_grant: int = 0
    patient: bool = False
    embedded: bool = False
    outside: bool = False
    """It is a client with code of its own."""
    line: bool = True
    """It has a line to the parent, and is not only called by it."""
    relay: bool = False
    """It has nodes of its own: one shard may take several of its slots, and is cut again there."""
    branches: Sequence[Mapping[str, str]] = ()
    """Of a relay: which labels its nodes have together, one entry for each kind of node."""


@dataclass(frozen=True, slots=True)
class Lookahead:
    """How much a node may hold beyond its capacity: ``seconds`` of work, at most ``limit`` shards."""

    seconds: float = 0.0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Local:
    """When the parent's own worker takes what any node may run: ``always``, or with no node for ``seconds``."""

    seconds: float = 10.0
    always: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a whole decision. ``buckets``: what is left of each rate limit that a demand names. ``lanes``: of
    runs with a pace of their own, by run and key, for every key that a demand names.

    ``target_seconds``: how long an automatically sized shard should run. ``seed`` feeds the balancer ``random``.
    ``most``: it ends with so many grants.
    """

    target_seconds: float = 1.0
    lookahead: Lookahead = Lookahead()
    local: Local = Local()
    buckets: Mapping[str, Bucket] = field(default_factory=dict)
    lanes: Mapping[tuple[int, str], Lanes] = field(default_factory=dict)
    seed: int = 0
    most: int | None = None
    ceilings: Mapping[str, int] = field(default_factory=dict)
    """Slots that are left under each ceiling."""


class Phase(StrEnum):
    QUOTA = "quota"
    FREE = "free"
    LOOKAHEAD = "look-ahead"


@dataclass(frozen=True, slots=True)
class Grant:
    """Piece ``piece`` of ``run``, which is of ``type``, goes to ``node``, because of ``reason``."""

    run: int
    type: str
    node: int
    piece: Piece
    phase: Phase
    reason: str
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why ``node`` cannot take more of ``run`` now. ``code`` is countable, ``reason`` is for people."""

    run: int
    node: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``aside`` are pieces that were cut but fit no node or rate: items with a rule of their own that hold up the rest.
    ``later`` are shards cut before that wait for their rate. ``spent`` are items given out by rate key. ``wake`` is in
    how many seconds a rate lets something through that a node has room for; None: nothing waits for that.
    """

    grants: list[Grant]
    aside: list[tuple[int, Piece]]
    refusals: list[Refusal]
    later: list[Piece] = field(default_factory=list)
    spent: Mapping[str, int] = field(default_factory=dict)
    wake: float | None = None
