"""What a level spares the root: 200 agents of its own or of ten relays; and 10,000 leaves in three levels, simulated.

Agents and, for the 10,000, relays are light clients in this process (``tests.chaos.herd``): they say what the shipped
ones say and run nothing. The root is real; so are the relays between it and the 200.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from bench.report import Sample, Table
from cascade.local import PARENT, LocalTree, LocalTreeError
from tests.chaos import herd
from tests.chaos.proxy import Proxy

RELAYS, AGENTS = 10, 200
ITEMS = 3_000
SECONDS_EACH = (0.4, 0.6)
IDLE_SECONDS = 10.0
LEAST_RATIO = 5.0
START_SECONDS = 120.0
RUN_SECONDS = 300.0
ENV = {"CASCADE_FALLBACK_WORKERS": "0", "CASCADE_LEASE_SECONDS": "60", "CASCADE_SECOND_COPIES": "false"}

LEAVES, LEVEL_ITEM_SECONDS, LEVEL_SECONDS = 10_000, 10.0, 40.0
"""Items of the simulated tree take so long, and it works for about so long."""


class Counting(Proxy):
    """Counts what the server says to those behind it: answers by HTTP, and frames with text on sockets."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.messages = 0
        self._kept: dict[Any, bytearray] = {}

    def _swallows(self, link: Any, piece: bytes) -> bool:
        if not link.is_socket:
            self.messages += piece.count(b"HTTP/1.1 ")
            return super()._swallows(link, piece)
        kept = self._kept.setdefault(link, bytearray())
        kept += piece
        if kept.startswith(b"HTTP/1.1"):
            head, found, rest = kept.partition(b"\r\n\r\n")
            kept[:] = rest if found else head
            self.messages += bool(found)
        while (length := _frame(kept)) and len(kept) >= length:
            self.messages += kept[0] & 0x0F == 1
            del kept[:length]
        return super()._swallows(link, piece)


def _frame(content: bytearray) -> int:
    """The length of the frame that ``content`` begins with, which is not masked; 0: not known yet."""
    if len(content) < 2 or content.startswith(b"HTTP"):
        return 0
    size = content[1] & 0x7F
    more = {126: 2, 127: 8}.get(size, 0)
    if len(content) < 2 + more:
        return 0
    return 2 + more + (int.from_bytes(content[2 : 2 + more], "big") if more else size)


class Crowd:
    """Light clients on an event loop in a thread of their own; a context manager."""

    def __init__(self, clients: Sequence[herd.Child]) -> None:
        self._clients = clients
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd", daemon=True)

    def __enter__(self) -> Crowd:
        self._thread.start()
        for client in self._clients:
            self._begin(client.run())
        deadline = time.monotonic() + START_SECONDS
        while any(client.hello for client in self._clients):
            if time.monotonic() > deadline:
                raise LocalTreeError(f"not all clients were heard in {START_SECONDS:g} s: {self._clients[0].seen}")
            time.sleep(0.1)
        return self

    def __exit__(self, *args: object) -> None:
        self._begin(self._end()).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


@dataclass(frozen=True)
class Load:
    """What the root had to do meanwhile: ``cpu`` in seconds."""

    messages: int
    cpu: float
    seconds: float


def _cpu(root: LocalTree) -> float:
    process = psutil.Process(root.pid(PARENT))
    taken = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            taken += times.user + times.system
    return taken


def _load(root: LocalTree, counted: Sequence[Counting], work: Callable[[], object]) -> Load:
    before, cpu, began = sum(each.messages for each in counted), _cpu(root), time.monotonic()
    work()
    after = sum(each.messages for each in counted)
    return Load(after - before, _cpu(root) - cpu, time.monotonic() - began)


def _run(root: LocalTree, items: int) -> None:
    """Looked at rarely: who asks costs the root CPU that is not the tree's."""
    run = root.submit("echo", [f"{time.time_ns()}-{number}" for number in range(items)], shard_size=1)
    progress = root.wait(run, timeout=RUN_SECONDS, every=1.0)
    if (progress["state"], progress["rows"]) != ("completed", items):
        raise LocalTreeError(f"run {run} should have saved {items} rows: {progress}")


def _clients(url: str, keys: Sequence[dict[str, str]]) -> list[herd.Child]:
    seen = herd.Seen()
    return [herd.Child(url, key, seen, push=True) for key in keys]


@contextmanager
def _flat() -> Iterator[tuple[LocalTree, list[Counting]]]:
    """A root over all agents."""
    with TemporaryDirectory(prefix="cascade-bench-") as folder, LocalTree(Path(folder), env=ENV) as root:
        keys = herd._nodes(root, AGENTS)
        with Counting(root.port) as line, Crowd(_clients(line.url, keys)):
            yield root, [line]


@contextmanager
def _through_relays() -> Iterator[tuple[LocalTree, list[Counting]]]:
    """A root over relays, each over its part of the agents."""
    with TemporaryDirectory(prefix="cascade-bench-") as folder, ExitStack() as stack:
        root = stack.enter_context(LocalTree(Path(folder, "root"), env=ENV))
        lines, clients = [], []
        for number in range(RELAYS):
            name = f"relay-{number}"
            key = json.loads(root.manage("node", "add", name, "--capacity", "1000", "--json").stdout)
            lines.append(stack.enter_context(Counting(root.port)))
            env = {**ENV, "CASCADE_NODE_NAME": name}
            relay = LocalTree(Path(folder, name), env=env, above=(lines[-1].url, key))
            stack.enter_context(relay)
            clients += _clients(relay.url, herd._nodes(relay, AGENTS // RELAYS))
        stack.enter_context(Crowd(clients))
        time.sleep(2 * herd.BEAT_SECONDS)  # relays offer what is below them with their next beat
        yield root, lines


def spared(rounds: int) -> Table:
    herd.RUN_SECONDS = SECONDS_EACH
    kinds = {"flat": _flat, "tree": _through_relays}
    busy: dict[str, list[Load]] = {name: [] for name in kinds}
    idle: dict[str, Load] = {}
    # One after the other: together they would need the machine thrice.
    for name, made in kinds.items():
        with made() as (root, lines):
            _run(root, ITEMS // 10)
            for _ in range(rounds):
                busy[name].append(_load(root, lines, lambda root=root: _run(root, ITEMS)))  # type: ignore[misc]
            idle[name] = _load(root, lines, lambda: time.sleep(IDLE_SECONDS))
    table = Table(
        f"tree: what the root does for {AGENTS} agents, its own or those of {RELAYS} relays; runs of {ITEMS:,} items, "
        "one a shard",
        ["at the root", "flat", "tree", "flat ÷ tree", "at least", "reached"],
    )

    def row(what: str, of: Callable[[Load], float], judged: bool, loads: Mapping[str, Sequence[Load]]) -> None:
        samples = {name: Sample(tuple(of(each) for each in loads[name])) for name in kinds}
        ratio = samples["flat"].median / max(samples["tree"].median, 1e-9)
        table.add(
            what,
            samples["flat"].text(1),
            samples["tree"].text(1),
            f"{ratio:.1f}",
            f"{LEAST_RATIO:.0f}" if judged else "",
            table.judge(f"tree, {what}: {ratio:.1f} × less", ratio >= LEAST_RATIO) if judged else "",
        )

    row("messages, a run", lambda load: load.messages, True, busy)
    row("CPU seconds, a run", lambda load: load.cpu, True, busy)
    row("wall seconds, a run", lambda load: load.seconds, False, busy)
    alone = {name: [load] for name, load in idle.items()}
    row("messages a second, idle", lambda load: load.messages / load.seconds, False, alone)
    row("CPU ms a second, idle", lambda load: 1000 * load.cpu / load.seconds, False, alone)
    return table


# Three levels


class Branch(herd.Child):
    """A relay over ``leaves`` as the root sees it: takes slots, and tells once a second what its leaves have done."""

    def __init__(self, url: str, key: dict[str, str], seen: herd.Seen, *, number: int, leaves: int) -> None:
        super().__init__(url, key, seen, push=True)
        self._told = {
            "role": "relay",
            "id": f"{number:032x}",
            "slots": leaves,
            "types": {"echo": leaves},
            "branches": [{}],
        }
        self._slots: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._parts: dict[int, int] = {}
        self._at: dict[int, int] = {}
        self.reports = 0

    async def _call(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        return await super()._call(verb, {**body, **self._told} if verb == "beat" else body)

    def _take(self, message: dict[str, Any]) -> None:
        for allocation, count in (message.get("slots") or {}).items():
            self._slots.setdefault(int(allocation), count)
        super()._take(message)

    async def _reporting(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.9, 1.1))
            now = time.monotonic()
            entries = [entry for parcel in list(self.held.values()) if (entry := self._due_of(parcel, now))]
            if not entries:
                continue
            self.reports += 1
            reply = await self._patiently("report", {"reports": entries})
            for result in reply["results"]:
                if result["status"] != 200:
                    self.seen.troubles[f"{result['status']}: {result.get('detail')}"] += 1
                if result["status"] != 200 or not result.get("part"):
                    self.held.pop(result["allocation"], None)

    def _due_of(self, parcel: list[Any], now: float) -> dict[str, Any] | None:
        """What its leaves have done of an allocation by now, and was not told."""
        allocation, _, start, stop, _, items = parcel
        began = self._since.setdefault(allocation, now)
        slots = self._slots.get(allocation, 1)
        done = min(start + int((now - began) / LEVEL_ITEM_SECONDS * slots), stop)
        at = self._at.get(allocation, start)
        if done <= at:
            return None
        self._at[allocation] = done
        names = [f"site-{each}/leaf-{random.randrange(100)}" for each in range(10)]
        ranges = [[number, number + 1, 1, number % 10] for number in range(at, done)]
        rows = [[str(items[number - start]), 0, f"{items[number - start]}:0"] for number in range(at, done)]
        entry = {"allocation": allocation, "ranges": ranges, "rows": rows, "nodes": names}
        entry["seconds"] = LEVEL_ITEM_SECONDS * (done - at)
        if done < stop:
            self._parts[allocation] = self._parts.get(allocation, 0) + 1
            entry["part"] = self._parts[allocation]
        return entry


def three_levels() -> Table:
    """10 relays of the root, each over 10 with 100 leaves: what the root holds and does."""
    with TemporaryDirectory(prefix="cascade-bench-") as folder, LocalTree(Path(folder), env=ENV) as root:
        keys = herd._nodes(root, RELAYS)
        for node in root.json("GET", "/api/v1/nodes", params={"limit": 100})["results"]:
            root.json("PATCH", f"/api/v1/nodes/{node['id']}", json={"capacity": LEAVES})
        seen = herd.Seen()
        with Counting(root.port) as line:
            branches = [
                Branch(line.url, key, seen, number=number + 1, leaves=LEAVES // RELAYS)
                for number, key in enumerate(keys)
            ]
            with Crowd(branches):
                idle = _load(root, [line], lambda: time.sleep(IDLE_SECONDS))
                items = int(LEAVES * LEVEL_SECONDS / LEVEL_ITEM_SECONDS)
                busy = _load(root, [line], lambda: _run(root, items))
                memory = psutil.Process(root.pid(PARENT)).memory_info().rss
                if seen.troubles:
                    raise LocalTreeError(f"not all went well: {seen.troubles}")
            with closing(sqlite3.connect(root.data_dir / "cascade.sqlite3")) as database:
                names = {"shards": "dispatch_shard", "allocations": "dispatch_allocation", "nodes": "nodes_node"}
                names["receipts"] = "dispatch_receipt"
                held = {
                    what: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for what, name in names.items()
                }
    table = Table(
        f"tree: a root over {LEAVES:,} leaves in three levels (10 relays, 10 below each, 100 leaves below those), "
        f"simulated; {items:,} items of {LEVEL_ITEM_SECONDS:.0f} s",
        ["at the root", "idle", "at work"],
    )
    table.add("items a second", "", f"{items / busy.seconds:,.0f}")
    table.add("messages a second", *(f"{load.messages / load.seconds:.1f}" for load in (idle, busy)))
    table.add("CPU, % of a core", *(f"{100 * load.cpu / load.seconds:.0f}" for load in (idle, busy)))
    table.add("memory, MB", "", f"{memory / 1e6:.0f}")
    table.add("rows in its database", str(held["nodes"]), f"{sum(held.values()):,}")
    table.add("… shards, allocations, receipts", "", ", ".join(f"{held[n]:,}" for n in list(held) if n != "nodes"))
    return table


def measure(rounds: int) -> list[Table]:
    return [spared(rounds), three_levels()]
