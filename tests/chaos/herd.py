"""A herd of simulated children on the real wire: signed requests, sockets and long polls; the parent dies and returns.

The simulation is a load generator: its children run nothing, they report ``echo``'s rows at once. What is real is what
they say, how they wait (the shipped agent's jitter, the parent's Retry-After), and the parent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import resource
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cascade.local import ROOT, LocalTree
from nodes import signing
from nodes.agent.carriers import LIVELY_SECONDS, jitter
from tests.chaos.report import Items, Report

CHILDREN = 2_000
PROCESSES = 2
PUSHING = 0.7
"""Of the children, this share holds a socket; the others poll."""
BEAT_SECONDS = 5.0
RUN_SECONDS = (10.0, 50.0)
"""What a child has takes so long: thousands of children are not used for less."""
ENV = {"CASCADE_FALLBACK_WORKERS": "0", "CASCADE_LEASE_SECONDS": "60", "CASCADE_SECOND_COPIES": "false"}
FILES = 8_192
_DIGITS = re.compile(r"\d+")


@dataclass
class Seen:
    """What the children of one process saw; times are by ``time.monotonic``, which processes of a machine share."""

    beats: list[tuple[float, float]] = field(default_factory=list)
    """(when, seconds until its reply) of each."""
    first: dict[str, float] = field(default_factory=dict)
    """Child -> when it had its first reply since the last mark."""
    back: dict[str, float] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    claimed: int = 0
    acknowledged: list[int] = field(default_factory=list)
    gone: int = 0
    """Allocations that the parent did not want any more: a lease that was lost."""
    troubles: Counter[str] = field(default_factory=Counter)


class Answered(Exception):
    """The parent asked for patience, or is not there. ``wait``: seconds that it asked for."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class Child:
    """One simulated child."""

    def __init__(self, url: str, key: dict[str, str], seen: Seen, *, push: bool) -> None:
        self.url, self.key, self.seen, self.push = url, key, seen, push
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        self.boot = secrets.token_hex(8)
        self.held: dict[int, list[Any]] = {}
        self.leased: set[int] = set()
        """Those whose lease has begun: the parent has heard, or said with a claim, that they are here."""
        self.beat_seconds = BEAT_SECONDS
        self.hello = True
        self._offered: list[int] = []
        self._socket: Any = None
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()
        self._due = asyncio.Event()
        self._came = asyncio.Event()
        self._greeted = asyncio.Event()
        """It was heard once; before, there is nothing to ask for."""
        self._opened = asyncio.Event()

    async def run(self) -> None:
        await asyncio.sleep(random.uniform(0, self.beat_seconds))  # they were not all started at one moment
        carrier = self._pushing if self.push else self._claiming
        jobs = (self._beating, self._accepting, self._reporting, carrier)
        await _first([asyncio.create_task(self._again(job)) for job in jobs])

    async def _again(self, job: Callable[[], Awaitable[None]]) -> None:
        """Runs ``job``, again after each trouble, as patiently as the shipped agent."""
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                await job()
            except Answered as answer:
                self.seen.troubles[str(answer)] += 1
                wait = answer.wait
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.seen.troubles[type(error).__name__] += 1
                wait = None
            attempt = 0 if time.monotonic() - began > LIVELY_SECONDS else attempt + 1
            await asyncio.sleep(jitter(attempt) if wait is None else wait * random.uniform(1, 1.5))

    # Carriers

    async def _pushing(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

        address = f"{self.url}/ws/agent"
        headers = self._signed("GET", address)
        try:
            socket = await connect(
                address.replace("http", "ws", 1), additional_headers=headers, compression=None, open_timeout=10,
                ping_interval=10, ping_timeout=20, proxy=None,
            )  # fmt: skip
        except InvalidStatus as error:
            self.seen.statuses[error.response.status_code] += 1
            after = error.response.headers.get("Retry-After")
            raise Answered(f"upgrade {error.response.status_code}", float(after) if after else None) from None
        except (InvalidHandshake, InvalidMessage) as error:
            raise Answered(type(error).__name__) from None
        self._socket = socket
        self._opened.set()
        try:
            await self._listen(socket)
        except ConnectionClosed:
            raise Answered("socket closed") from None
        finally:
            self._socket = None
            socket.transport.abort()
            for waiting in self._replies.values():
                if not waiting.done():
                    waiting.set_exception(Answered("socket closed"))

    async def _listen(self, socket: Any) -> None:
        async for text in socket:
            frame = json.loads(text)
            if frame["type"] == "reply":
                if (waiting := self._replies.pop(frame["re"], None)) is not None and not waiting.done():
                    waiting.set_result(frame)
            else:
                self._take(frame)
        raise Answered("socket closed")

    async def _claiming(self) -> None:
        await self._greeted.wait()
        reader = writer = None
        try:
            while True:
                if writer is None:
                    reader, writer = await asyncio.open_connection(*self.address)
                body: dict[str, object] = {"boot": self.boot, "slots": 2, "held": sorted(self.held), "wait": 30.0}
                self._take(await self._exchange(reader, writer, "claim", body, 45))
        finally:
            if writer is not None:
                writer.transport.abort()

    # Verbs

    async def _call(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """On the socket while there is one, else by REST."""
        from websockets.exceptions import ConnectionClosed

        if self._socket is not None:
            self._number += 1
            waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            self._replies[self._number] = waiting
            try:
                await self._socket.send(json.dumps({"type": verb, "id": self._number, "body": body}))
                async with asyncio.timeout(30):
                    frame = await waiting
            except ConnectionClosed:
                raise Answered("socket closed") from None
            self.seen.statuses[frame["status"]] += 1
            if frame["status"] != 200:
                raise Answered(f"{verb} {frame['status']}", frame.get("retry_after"))
            return dict(frame["body"])
        async with self._turn:
            if self._line is None:
                self._line = await asyncio.open_connection(*self.address)
            try:
                return await self._exchange(*self._line, verb, body, 30)
            except BaseException:
                self._hang_up()
                raise

    async def _patiently(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """As the shipped agent: who is asked to come later keeps its carrier and comes later."""
        while True:
            try:
                return await self._call(verb, body)
            except Answered as answer:
                if answer.wait is None:
                    raise
                self.seen.troubles[str(answer)] += 1
                await asyncio.sleep(answer.wait * random.uniform(1, 1.5))

    async def _exchange(self, reader: Any, writer: Any, verb: str, body: dict[str, Any], patience: float) -> Any:
        content = json.dumps(body).encode()
        path = f"/api/v1/agent/{verb}"
        headers = self._signed("POST", self.url + path, content)
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {self.address[0]}:{self.address[1]}",
            f"Content-Length: {len(content)}",
        ]
        lines += ["Content-Type: application/json", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        async with asyncio.timeout(patience):
            status, fields, answer = await _answer(reader)
        self.seen.statuses[status] += 1
        if status != 200:
            after = fields.get("retry-after")
            raise Answered(f"{verb} {status}", float(after) if after else None)
        return json.loads(answer)

    def _signed(self, method: str, url: str, content: bytes = b"") -> dict[str, str]:
        own = self.key
        return signing.sign(method, url, content, access_key=own["access_key"], secret_key=own["secret_key"])

    async def _beating(self) -> None:
        while True:
            held = sorted(self.held)
            body: dict[str, object] = {
                "boot": self.boot,
                "held": held,
                "running": held[:2],
                "version": "0.0-herd",
                "executors": ["echo"],
            }
            body |= {"carrier": "push" if self.push else "pull", "hello": self.hello}
            body |= {"cpu": 5.0, "memory": 20.0, "disk": 30.0}
            began = time.monotonic()
            reply = await self._call("beat", body)
            now = time.monotonic()
            self.seen.beats.append((now, now - began))
            self.seen.back.setdefault(self.key["access_key"], now)
            self.hello = False
            self._greeted.set()
            self.beat_seconds = float(reply["beat_seconds"])
            for allocation in reply["cancel"]:
                # What was reported and accepted is no loss: its receipt was lost on the way.
                self.held.pop(allocation, None)
            # A new socket is told at once what is held and running.
            self._opened.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.beat_seconds):
                    await self._opened.wait()

    def _take(self, message: dict[str, Any]) -> None:
        for allocation, *rest in message.get("work") or []:
            if allocation not in self.held:
                self.seen.claimed += 1
                self.held[allocation] = [allocation, *rest]
                if message.get("type") == "offer":
                    self._offered.append(allocation)
                else:
                    self.leased.add(allocation)
        if self.held:
            self._due.set()
        if self._offered:
            self._came.set()

    async def _accepting(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            if offered := [pk for pk in self._offered if pk in self.held]:
                try:
                    reply = await self._patiently("accept", {"allocations": offered})
                except BaseException:
                    self._came.set()  # it is said again when there is a line
                    raise
                self.leased.update(offered)
                for allocation in reply["gone"]:
                    self.held.pop(allocation, None)  # an offer that came too late is no lease
                    self.leased.discard(allocation)
            self._offered = [pk for pk in self._offered if pk not in offered]

    async def _reporting(self) -> None:
        while True:
            await self._due.wait()
            await asyncio.sleep(random.uniform(*RUN_SECONDS))  # as if it had run something
            self._due.clear()
            batch = list(self.held.values())[:20]
            if not batch:
                continue
            reply = await self._patiently("report", {"reports": [_done(parcel) for parcel in batch]})
            for result in reply["results"]:
                if result["status"] == 200:
                    self.seen.acknowledged.append(result["allocation"])
                elif result["allocation"] in self.leased:
                    self.seen.gone += 1
                    self.seen.troubles[f"{result['status']}: {_DIGITS.sub('N', str(result.get('detail')))}"] += 1
                self.held.pop(result["allocation"], None)
                self.leased.discard(result["allocation"])
            if self.held:
                self._due.set()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line[1].transport.abort()
            self._line = None


async def _first(jobs: Sequence[asyncio.Task[None]]) -> None:
    """Until one of them ends, which it does by an error only; that is raised."""
    try:
        done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        for job in done:
            job.result()
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One HTTP response: status, headers, body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ")[1])
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if fields.get("transfer-encoding") != "chunked":
        return status, fields, await reader.readexactly(int(fields.get("content-length", "0")))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return status, fields, body


def _done(parcel: list[Any]) -> dict[str, Any]:
    allocation, _, start, stop, _, items = parcel
    rows = [[str(item), 0, f"{item}:0"] for item in items]
    return {"allocation": allocation, "ranges": [[at, at + 1, 1] for at in range(start, stop)], "errors": [],
            "rows": rows, "seconds": 0.5}  # fmt: skip


# The processes of the herd


def _process(url: str, keys: list[dict[str, str]], pipe: Any) -> None:
    """Runs children until told to end; answers each word on ``pipe`` with what was seen since the last."""
    os.nice(5)
    _raise_files()
    asyncio.run(_graze(url, keys, pipe))


async def _graze(url: str, keys: list[dict[str, str]], pipe: Any) -> None:
    seen = Seen()
    pushing = round(len(keys) * PUSHING)
    children = [Child(url, key, seen, push=number < pushing) for number, key in enumerate(keys)]
    tasks = [asyncio.create_task(child.run()) for child in children]
    loop = asyncio.get_running_loop()
    while True:
        word = await loop.run_in_executor(None, pipe.recv)
        for task in tasks:
            if task.done():
                task.result()
        if word == "end":
            return
        pipe.send(Seen(**vars(seen)))
        if word == "clear":
            for part in (seen.beats, seen.back, seen.troubles):
                part.clear()


def _raise_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))


class Herd:
    """``children`` simulated children of ``tree``'s parent, in processes beside this one; a context manager."""

    def __init__(self, tree: LocalTree, children: int, processes: int = PROCESSES) -> None:
        self.tree, self.children, self.processes = tree, children, processes

    def __enter__(self) -> Herd:
        keys = _nodes(self.tree, self.children)
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for number in range(self.processes):
            ours, theirs = context.Pipe()
            part = keys[number :: self.processes]
            process = context.Process(target=_process, args=(self.tree.url, part, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *args: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send("end")
        for process in self._processes:
            process.join(10)
            process.kill()

    def seen(self, *, clear: bool = False) -> Seen:
        """What all of them saw since the last ``clear``; claims, statuses and receipts since the start."""
        for pipe in self._pipes:
            pipe.send("clear" if clear else "look")
        parts = [pipe.recv() for pipe in self._pipes]
        whole = Seen()
        for part in parts:
            whole.beats += part.beats
            whole.back.update(part.back)
            whole.statuses += part.statuses
            whole.claimed += part.claimed
            whole.acknowledged += part.acknowledged
            whole.gone += part.gone
            whole.troubles += part.troubles
        return whole

    def wait(self, seconds: float) -> Seen:
        """Until every child has had a reply to a beat since the last ``clear``, or so long; what was seen."""
        deadline = time.monotonic() + seconds
        while len((seen := self.seen()).back) < self.children and time.monotonic() < deadline:
            time.sleep(0.25)
        return seen


_MAKE = """
import json, sys, django
django.setup()
from nodes import registry
from nodes.transactions import write
count = int(sys.argv[1])
keys = []
with write():
    for number in range(count):
        _, key = registry.add_node(f"herd-{number}", capacity=2)
        keys.append({"access_key": key.access_key, "secret_key": key.secret_key})
print(json.dumps(keys))
"""


def _nodes(tree: LocalTree, count: int) -> list[dict[str, str]]:
    """Nodes with their keys, made at one go."""
    import subprocess

    done = subprocess.run(
        [tree.python, "-c", _MAKE, str(count)], cwd=ROOT, env=tree._environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    keys: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return keys


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def run(seconds: float, report: Report, *, children: int = CHILDREN) -> None:
    """The herd at work, its parent killed and started again, the herd back; figures of all that."""
    with tempfile.TemporaryDirectory(prefix="cascade-herd-") as folder, LocalTree(Path(folder), env=ENV) as tree:
        with Herd(tree, children) as herd:
            seen = herd.wait(max(seconds, 120))
            report.figure("herd: children held", len(seen.back))
            if len(seen.back) < children:
                report.problem(f"of {children} children {len(seen.back)} were ever heard: {seen.troubles}")
            measured = max(seconds / 4, 10.0)
            items = [f"herd-{number}" for number in range(int(children * measured * 4))]
            run_id = tree.submit("echo", items, shard_size=1)
            before = herd.seen(clear=True)
            time.sleep(measured)
            after = herd.seen()
            _told(report, "at work", after.beats)
            report.figure("herd: claims a second", (after.claimed - before.claimed) / measured)

            herd.seen(clear=True)
            tree.kill("parent")
            report.kill("parent of a herd, kill -9")
            began = time.monotonic()
            tree.start_parent()
            up = time.monotonic()
            seen = herd.wait(180)
            last = max(seen.back.values(), default=began)
            report.figure("herd: parent up again after kill -9", up - began, "s")
            report.figure("herd: last child back after the parent was up", last - up, "s")
            if len(seen.back) < children:
                report.problem(f"{children - len(seen.back)} of {children} children never came back: {seen.troubles}")
            herd.seen(clear=True)
            time.sleep(measured)
            after = herd.seen()
            _told(report, "after the restart", after.beats)
            lost = herd.seen().gone  # those of the cancel are none
            tree.request("POST", f"/api/v1/runs/{run_id}/cancel")
            final = herd.seen()
            failed = sum(count for status, count in final.statuses.items() if status >= 500)
            report.add("5xx seen", failed, zero=True)
            report.figure("herd: leases lost", lost, zero=True)
            report.figure("herd: asked to come later (429)", final.statuses[429])
            print(f"    {dict(final.statuses)} {dict(final.troubles)}", flush=True)
        _account(tree, run_id, final.acknowledged, report)


def _told(report: Report, when: str, beats: Sequence[tuple[float, float]]) -> None:
    taken = [seconds * 1000 for _, seconds in beats]
    report.figure(f"herd: beat {when}, p50", statistics.median(taken) if taken else float("nan"), "ms")
    report.figure(f"herd: beat {when}, p99", percentile(taken, 0.99), "ms")


def _account(tree: LocalTree, run_id: int, acknowledged: Sequence[int], report: Report) -> None:
    """What was acknowledged is saved, once; the rest of the run was cancelled."""
    tree.wait(run_id, timeout=120)
    rows = tree.json("GET", f"/api/v1/runs/{run_id}/results", params={"raw": "true"}, timeout=120)
    saved = Counter(str(row["_allocation"]) for row in rows)
    wanted = frozenset(map(str, acknowledged))
    report.items("herd", Items(wanted | frozenset(saved), wanted, wanted, saved))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.herd")
    parser.add_argument("--children", type=int, default=CHILDREN)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    report = Report()
    run(options.seconds, report, children=options.children)
    print(report.markdown())
    return int(report.broken)


if __name__ == "__main__":
    sys.exit(main())
