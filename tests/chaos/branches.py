"""A root, two relays and six leaves; a leaf, a relay, the root, a line and the place of a branch are broken in turn."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from cascade.local import PARENT, Child, LocalTree, LocalTreeError, next_look
from tests.chaos.proxy import Faults, Proxy
from tests.chaos.report import Items, Report

ENV = {
    "CASCADE_FALLBACK_WORKERS": "0",
    "CASCADE_BEAT_SECONDS": "0.5",
    "CASCADE_LEASE_SECONDS": "6",
    "CASCADE_OFFER_SECONDS": "4",
    "CASCADE_OFFLINE_SECONDS": "6",
}
CARRIERS = ("push", "pull", "auto")
CAPACITY = 2
FROZEN_SECONDS = 10.0
"""Beyond a lease."""
CUT_SECONDS = 30.0
ITEM_SECONDS = 0.02
ITEMS = 2_000
END_SECONDS = 180.0
SYMBOLS, BARS = ("AAPL", "FB", "GOOG", "IBM", "MSFT"), 12_154


class Grove:
    """``root`` over the relays ``eu`` and ``us``, each behind a proxy and over three leaves, one for each carrier."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.root = stack.enter_context(LocalTree(folder / "root", env={**ENV, "CASCADE_NODE_NAME": "root"}))
        self.relays: dict[str, LocalTree] = {}
        self.lines: dict[str, Proxy] = {}
        self.places: dict[str, tuple[LocalTree, tuple[str, Mapping[str, str]]]] = {}
        """Where ``us`` may hang: (parent, its address and the relay's key there)."""
        for name in ("eu", "us"):
            self.lines[name] = stack.enter_context(Proxy(self.root.port))
            leaves = [Child(f"{name}-{how}", capacity=CAPACITY, carrier=how) for how in CARRIERS]
            env = {**ENV, "CASCADE_NODE_NAME": name}
            above = (self.lines[name].url, _key(self.root, name))
            relay = LocalTree(folder / name, children=leaves, env=env, above=above)
            self.relays[name] = stack.enter_context(relay)
        for name in self.relays:
            self.await_node(self.root, name)
        eu, us = self.relays["eu"], self.relays["us"]
        assert us.above is not None
        self.places = {"root": (self.root, us.above), "eu": (eu, (eu.url, _key(eu, "us")))}
        self.place = "root"

    def await_node(self, parent: LocalTree, name: str) -> None:
        """Until ``parent`` has heard of it. Raises LocalTreeError."""
        began = time.monotonic()
        while parent.nodes()[name]["state"] != "online":
            if time.monotonic() > began + END_SECONDS:
                raise LocalTreeError(f"{name} has not come to {parent.url}\n{self.relays[name].tail(PARENT)}")
            time.sleep(next_look(began))

    def import_bars(self) -> int:
        """The rows of an import of all sample data."""
        run = self.root.submit("data_import", SYMBOLS, params={"source": "sample"}, shard_size=1)
        progress = self.root.wait(run, timeout=END_SECONDS)
        if progress["state"] != "completed":
            raise LocalTreeError(f"the import has ended {progress}")
        return int(progress["rows"])


def _key(parent: LocalTree, name: str) -> dict[str, str]:
    made: dict[str, str] = json.loads(parent.manage("node", "add", name, "--capacity", "100", "--json").stdout)
    return made


# What happens in the middle of a run


def leaf_killed(grove: Grove) -> None:
    grove.relays["eu"].kill("eu-push", machine=True)
    grove.relays["eu"].restart("eu-push")


def relay_killed(grove: Grove) -> None:
    grove.relays["us"].kill(PARENT)
    grove.relays["us"].start_parent()


def root_killed(grove: Grove) -> None:
    grove.root.kill(PARENT)
    grove.root.start_parent()


def line_cut(grove: Grove) -> None:
    line = grove.lines["eu"]
    line.faults = Faults(open=False)
    line.cut()
    time.sleep(CUT_SECONDS)
    line.heal()


def relay_frozen(grove: Grove) -> None:
    grove.relays["us"].pause(PARENT)
    time.sleep(FROZEN_SECONDS)
    grove.relays["us"].resume(PARENT)


def branch_moved(grove: Grove) -> None:
    """``us`` is hung below ``eu``, or back below the root: it is given address and key, and started again."""
    grove.place = "eu" if grove.place == "root" else "root"
    parent, grove.relays["us"].above = grove.places[grove.place]
    grove.relays["us"].restart(PARENT)
    grove.await_node(parent, "us")


SCENARIOS: dict[str, Callable[[Grove], None]] = {
    "leaf, kill -9": leaf_killed,
    "relay, kill -9": relay_killed,
    "root, kill -9": root_killed,
    "relay, line cut for 30 s": line_cut,
    "relay, frozen past its lease": relay_frozen,
    "relay, moved to another parent": branch_moved,
}


def through(grove: Grove, name: str, act: Callable[[Grove], None], items: list[str], seconds: float) -> Items:
    """A run over ``items``, in the middle of which ``act`` happens; what became of them."""
    run = grove.root.submit("echo", items, params={"seconds": seconds}, shard_size=2, max_attempts=20)
    grove.root.wait(run, timeout=END_SECONDS, until=lambda progress: progress["saved"] > len(items) // 10)
    if grove.root.progress(run)["state"] != "running":
        raise LocalTreeError(f"{name}: the run was over before anything could happen to it")
    act(grove)
    grove.root.wait(run, timeout=END_SECONDS)
    rows = grove.root.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"}, timeout=120)
    wanted = frozenset(items)
    return Items(wanted, wanted, wanted, Counter(row["item"] for row in rows))


def run(seconds: float, report: Report) -> None:
    """The import, then one scenario after the other, until the time is over; each of them once at least."""
    until = time.monotonic() + seconds
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cascade-branches-"))
        grove = Grove(Path(folder), stack)
        if (bars := grove.import_bars()) != BARS:
            report.problem(f"branches: the import has {bars} rows, not {BARS}")
        number = 0
        while not number or time.monotonic() < until:
            for name, act in SCENARIOS.items():
                # A run lasts some ten seconds on twelve slots, so that it is still under way when it happens.
                items = [f"branch-{number}-{each}" for each in range(400)]
                number += 1
                report.items(f"branches: {name}", through(grove, name, act, items, 0.3))
                report.kill(name)
        report.figure("branches: runs of a tree of relays, every row once", number)
