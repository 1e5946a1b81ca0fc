"""Children behind bad networks: faults are switched at random, one after the other, while work goes on."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

from cascade.local import LocalTree
from tests.chaos.proxy import Faults, Proxy
from tests.chaos.report import Items, Report

CHILDREN = {"push-a": "push", "push-b": "push", "pull-a": "pull", "pull-b": "pull", "auto": "auto"}
ENV = {
    "CASCADE_BEAT_SECONDS": "0.5",
    "CASCADE_LEASE_SECONDS": "4",
    "CASCADE_OFFER_SECONDS": "3",
    "CASCADE_OFFLINE_SECONDS": "4",
    "CASCADE_LONG_POLL_SECONDS": "5",
    "CASCADE_FALLBACK_WORKERS": "0",
}
SHARDS_A_SECOND = 20
LONGEST_FAULT = 7.0
"""Beyond a lease, so that work is lost and done again by others."""
END_SECONDS = 120.0


def _cut_then(proxy: Proxy, faults: Faults) -> None:
    proxy.cut()
    proxy.faults = faults


def _faults(chance: Random) -> dict[str, Callable[[Proxy], object]]:
    """What may happen to one child's line next."""
    return {
        "connections dropped as they come": lambda proxy: setattr(proxy, "faults", Faults(drop=0.6)),
        "no connections taken": lambda proxy: setattr(proxy, "faults", Faults(open=False)),
        "connections taken, nothing said": lambda proxy: _cut_then(proxy, Faults(mute=True)),
        "sockets refused": lambda proxy: _cut_then(proxy, Faults(sockets=False)),
        "delay": lambda proxy: setattr(proxy, "faults", Faults(delay=chance.uniform(0.05, 1.5))),
        "slow drip": lambda proxy: setattr(proxy, "faults", Faults(drip=chance.uniform(500, 20_000))),
        "cut after some bytes": lambda proxy: setattr(proxy, "faults", Faults(cut_after=chance.randrange(100, 5_000))),
        "reset": lambda proxy: proxy.cut(),
        "receipts lost": lambda proxy: proxy.lose_receipts(chance.randrange(1, 4)),
        "black hole upwards": lambda proxy: proxy.hold(down=False),
        "black hole downwards": lambda proxy: proxy.hold(up=False),
        "partition": lambda proxy: proxy.hold(),
        "half-open": lambda proxy: proxy.strand(),
    }


def run(seconds: float, report: Report) -> None:
    """Work for ``seconds`` under faults, then all of them healed, the rest of the work, and the account."""
    chance = report.chance("network")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cascade-network-"))
        tree = stack.enter_context(LocalTree(Path(folder), env=ENV))
        proxies = [stack.enter_context(Proxy(tree.port, seed=chance.randrange(2**32))) for _ in CHILDREN]
        for (name, carrier), proxy in zip(CHILDREN.items(), proxies, strict=True):
            _child(tree, name, carrier, proxy.url)
        items = [f"net-{number}" for number in range(int(seconds * SHARDS_A_SECOND))]
        number = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1, max_attempts=100)
        _storm(proxies, time.monotonic() + seconds, chance, report)
        for proxy in proxies:
            proxy.heal()
            proxy.cut()
        began = time.monotonic()
        state = tree.wait(number, timeout=END_SECONDS + seconds)["state"]
        report.figure("network: run ended after the last fault", time.monotonic() - began, "s")
        if state != "completed":
            report.problem(f"network: the run has ended {state}")
        report.add("network: receipts lost on the way", sum(len(proxy.lost) for proxy in proxies))
        _account(tree, number, items, report)


def _child(tree: LocalTree, name: str, carrier: str, url: str) -> None:
    made = tree.json("POST", "/api/v1/nodes", json={"name": name, "capacity": 2})
    argv = [tree.python, "-m", "nodes.agent", "--parent", url, "--carrier", carrier]
    env = {"CASCADE_ACCESS_KEY": made["access_key"], "CASCADE_SECRET_KEY": made["secret_key"]}
    tree.spawn(name, [*argv, "--data-dir", str(tree.folder(name))], env)


def _storm(proxies: list[Proxy], until: float, chance: Random, report: Report) -> None:
    """Of the lines, each is well or has one fault; at most all but one at a time, so that work goes on."""
    faults = _faults(chance)
    while time.monotonic() < until:
        for proxy in chance.sample(proxies, chance.randrange(1, len(proxies))):
            name = chance.choice(sorted(faults))
            faults[name](proxy)
            report.kill(f"line: {name}")
        time.sleep(min(chance.uniform(0.5, LONGEST_FAULT), max(until - time.monotonic(), 0)))
        for proxy in proxies:
            if chance.random() < 0.7:
                proxy.heal()


def _account(tree: LocalTree, number: int, items: list[str], report: Report) -> None:
    rows = tree.json("GET", f"/api/v1/runs/{number}/results", params={"raw": "true"}, timeout=120)
    saved = Counter(row["item"] for row in rows)
    wanted = frozenset(items)
    ends = {"limit": 1000, "run": number, "state": "completed"}
    acknowledged: set[str] = set()
    for offset in range(0, 2 * len(items), 1000):
        page = tree.json("GET", "/api/v1/allocations", params={**ends, "offset": offset}, timeout=60)["results"]
        acknowledged |= {item for each in page for item in items[each["start"] : each["stop"]]}
    report.items("network", Items(wanted, wanted, frozenset(acknowledged), saved))
