"""The part of ``python -m tests.chaos`` that attacks: requests by Schemathesis, frames, segments; and its figures."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from dispatch.results import decoding
from nodes.protocol import FieldError, TooLarge, Unprocessable
from tests.chaos.report import Report
from tests.hostile import bombs, frames, openapi
from tests.hostile.victim import Victim, victim
from tests.integration.agents import Agent
from tests.integration.test_agent_socket import opened

MB = 1024 * 1024
SHARES = (("operator", 0.4), ("child", 0.15), ("stranger", 0.05))
"""Of the time, for requests; the rest is for frames, segments and bombs."""


def run(seconds: float, report: Report) -> None:
    """Figures: bad inputs tried, operations, 5xx seen, exceptions logged, peak memory under a bomb."""
    seed = report.chance("hostile").randrange(2**31)
    with TemporaryDirectory(prefix="cascade-hostile-") as folder, victim(Path(folder)) as parent:
        for who, share in SHARES:
            found = openapi.attack(parent, who, seconds=seconds * share, examples=50, seed=seed)
            report.add("bad inputs tried", found.tried)
            report.add("5xx seen", found.server_errors, zero=True)
            if who == "operator":
                report.figure("operations of the API", len(found.operations))
            for line in found.told().splitlines()[:10] if found.failures or found.errors else ():
                report.problem(f"hostile, {who}: {line}")
        report.add("bad inputs tried", _frames(parent, seconds * 0.2, seed))
        report.add("bad inputs tried", _segments(Path(folder, "segment.arrow"), seconds * 0.2, seed))
        _bombs(parent, report)
        report.figure("exceptions in the attacked parent's log", len(parent.faults), zero=True)


def _frames(parent: Victim, seconds: float, seed: int) -> int:
    """How many were sent. Each is answered, and none with a 5xx."""
    until = time.monotonic() + seconds
    sent = 0
    with opened(parent.child) as socket:
        for frame in itertools.chain(frames.wrong_fields(), frames.broken(seed)):
            if time.monotonic() > until:
                break
            socket.say(frame)
            reply = socket.next(lambda told: told["type"] == "reply")
            assert reply["status"] < 500, (frame, reply)
            sent += 1
    return sent


def _segments(file: Path, seconds: float, seed: int) -> int:
    until = time.monotonic() + seconds
    tried = 0
    for made in bombs.mutations(bombs.honest(200), seed):
        if time.monotonic() > until:
            break
        file.write_bytes(made)
        with suppress(FieldError, TooLarge, Unprocessable):
            decoding.rows(file, bombs.ECHO)
        tried += 1
    return tried


def _bombs(parent: Victim, report: Report) -> None:
    """Each is uploaded and reported; what that cost the parent and the process that looks at it."""
    before = parent.memory
    most = looking = 0
    for name, make in bombs.BOMBS.items():
        child = Agent(parent.tree)
        _, ((allocation, _, start, stop, *_),) = child.work(name)
        segment = child.upload(make())
        entry = {"allocation": allocation, "ranges": [[start, stop, 1]], "segment": segment, "offset": 0}
        answer = child.say("report", {"reports": [entry]})
        if answer.status_code not in (413, 422):
            report.problem(f"the bomb {name} was answered {answer.status_code}: {answer.text[:200]}")
        most = max(most, parent.memory)
        for process in psutil.Process(parent.tree.pid("parent")).children():
            if "dispatch.results.decoder" in process.cmdline():
                looking = max(looking, peak(process))
        report.add("bad inputs tried", 1)
    report.figure("peak memory under a bomb, parent beyond what it had", (most - before) / MB, "MB")
    report.figure("peak memory under a bomb, the process that looks at it", looking / MB, "MB")


def peak(process: psutil.Process) -> int:
    """The most memory that it ever had, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
