"""One task shared over nodes: which items go where, what becomes of them. No file is written and nothing is saved here.

Items are cut into pieces as nodes ask for them, ever smaller towards the end, so that a lost node costs little and all
end at about the same time. What a node could not do goes to another one, or to workers on this machine. The first
result of an item counts; a second one is thrown away.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes import drive, executors
from nodes.agent.lines import Lost, Worker, rows_of
from nodes.executors.base import Item, item_key
from nodes.peer import Busy, Peer, PeerError, Unreachable

logger = logging.getLogger(__name__)

LOCAL = "local"
MOST_TRIES = 3
"""For an item whose node answered that it failed in a way that another attempt may not."""
PARTS = 2
"""A piece is this part of what is left for each worker."""
MOST_ITEMS = 50
POLL_SECONDS = (0.02, 1.0)
POLL_SHARE = 0.1
SILENT_TRIES = 3
BUSY_SECONDS = (0.2, 2.0)
LEAVE_SECONDS = 2.0
"""So long the end waits for cancels to reach the nodes; who waits for a silent one ends by itself later."""
HEDGE_SECONDS = 5.0
"""A piece that takes longer than this, and three times as long as others, is given to an idle worker as well."""


@dataclass(frozen=True)
class Seat:
    """A node as this task uses it: so many tasks at once."""

    node_id: str
    url: str
    api_key: str = field(repr=False)
    lanes: int


@dataclass(eq=False)
class Piece:
    """Items by their numbers. ``avoid``: who has tried them; ``running``: who is at it, since when."""

    numbers: tuple[int, ...]
    tries: int = 0
    avoid: frozenset[str] = frozenset()
    running: dict[str, float] = field(default_factory=dict)
    decided: bool = False
    """An answer came; another one, of somebody who was given it as well, changes nothing."""


@dataclass
class Fate:
    """What became of one item: rows in the dataset's column order, or the reason why there are none."""

    node: str
    rows: list[list[Any]] = field(default_factory=list)
    error: str = ""


class Sharing:
    """``run()`` it once. ``stop()`` may come from another thread: what runs on nodes is cancelled."""

    def __init__(
        self,
        task_id: str,
        type: str,
        params: Mapping[str, Any],
        items: Sequence[Item],
        seats: Sequence[Seat],
        *,
        priority: int,
        timeout: float,
        local_workers: int,
        lost: Callable[[str, str], None] = lambda node_id, why: None,
    ) -> None:
        # Unique for each execution: a node still knows the task of yesterday that had the same name.
        self.name = f"{task_id[:120]}-{secrets.token_hex(6)}"
        self.type = type
        self.params = dict(params)
        self.items = list(items)
        self.seats = {seat.node_id: seat for seat in seats}
        self.priority = priority
        self.timeout = timeout
        self.fates: dict[int, Fate] = {}
        self.used: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.stopped = self.cancelled = False
        self._lost = lost
        self._local_workers = local_workers
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._uncut = 0
        self._returned: deque[Piece] = deque()
        self._flying: list[Piece] = []
        self._slowest = 0.0
        self._sent = 0
        self._deadline = time.monotonic() + timeout
        self._threads: list[threading.Thread] = []
        self._local: list[Worker] = []
        self._locals = 0
        self._lanes = 0

    def run(self) -> None:
        """Until every item has its fate, at the latest at the time-out."""
        try:
            # Round by round, so that the best nodes come first where there are fewer pieces than places.
            self._lanes = sum(seat.lanes for seat in self.seats.values())
            for lane in range(max((seat.lanes for seat in self.seats.values()), default=0)):
                for seat in self.seats.values():
                    if lane < seat.lanes and (piece := self._next(seat.node_id, wait=False)) is not None:
                        self._begin(self._remote, seat, piece)
            with self._changed:
                while not self._over():
                    self._hire()
                    self._changed.wait(0.2)
        finally:
            self._leave()
            until = time.monotonic() + LEAVE_SECONDS
            for thread in self._threads:
                thread.join(timeout=max(until - time.monotonic(), 0))
        for number in range(len(self.items)):
            self.fates.setdefault(number, Fate("", error=self._why_not()))

    def stop(self) -> None:
        self.cancelled = self.cancelled or not self._over()
        self._leave()

    def _leave(self) -> None:
        with self._changed:
            self.stopped = True
            self._ended.set()
            self._changed.notify_all()
        for worker in self._local:
            worker.stop()

    # What is left to do

    def _over(self) -> bool:
        return self.stopped or len(self.fates) == len(self.items) or time.monotonic() > self._deadline

    def _why_not(self) -> str:
        if time.monotonic() > self._deadline:
            return f"not done within {self.timeout:g} s"
        return "; ".join(self.failed.values()) or "stopped before it was done"

    def _usable(self) -> set[str]:
        return set(self.seats) - set(self.failed)

    def _next(self, who: str, *, wait: bool = True) -> Piece | None:
        """A piece for ``who``; None where there is nothing more for it to do."""
        with self._changed:
            while not self._over() and who not in self.failed:
                piece = self._returned_for(who) or self._cut(who) or (self._slow_for(who) if wait else None)
                if piece is not None:
                    if piece not in self._flying:
                        self._flying.append(piece)
                    piece.running[who] = time.monotonic()
                    return piece
                if not wait:
                    return None
                self._changed.wait(0.5)
        return None

    def _returned_for(self, who: str) -> Piece | None:
        for piece in self._returned:
            # Who has tried it comes last; this machine comes when no node is left that has not.
            others = self._usable() - piece.avoid
            if (who == LOCAL and not others) or who in others or (who != LOCAL and not others and not self._may_hire()):
                self._returned.remove(piece)
                return piece
        return None

    def _cut(self, who: str) -> Piece | None:
        left = len(self.items) - self._uncut
        if not left or (who == LOCAL and self._usable()):
            return None
        size = min(max(math.ceil(left / (PARTS * max(self._lanes, 1))), 1), MOST_ITEMS)
        piece = Piece(tuple(range(self._uncut, self._uncut + size)))
        self._uncut += size
        return piece

    def _slow_for(self, who: str) -> Piece | None:
        now = time.monotonic()
        for piece in self._flying:
            if len(piece.running) != 1 or who in piece.running or who in piece.avoid:
                continue
            since = next(iter(piece.running.values()))
            if now - since > max(HEDGE_SECONDS, 3 * self._slowest * len(piece.numbers)):
                return piece
        return None

    def _land(self, piece: Piece, who: str) -> None:
        """``who`` is not at it any more; the caller holds the lock."""
        piece.running.pop(who, None)
        if not piece.running and piece in self._flying:
            self._flying.remove(piece)

    def _give_back(self, piece: Piece, who: str, *, tried: bool) -> None:
        with self._changed:
            self._land(piece, who)
            if not piece.running and not piece.decided:
                avoid = piece.avoid | {who} if tried else piece.avoid
                self._returned.append(Piece(piece.numbers, piece.tries, avoid))
            self._changed.notify_all()

    def _settle(self, piece: Piece, who: str, entry: Mapping[str, Any], rows: Sequence[list[Any]]) -> None:
        """Takes what ``who`` made of a piece: a report's entry with indexes from 0, and its rows."""
        with self._changed:
            began = piece.running.get(who, time.monotonic())
            self._land(piece, who)
            if piece.decided or self.stopped:
                return
            piece.decided = True
            if failure := entry.get("failure"):
                for number in piece.numbers:
                    self._fail(number, piece, who, str(failure.get("message") or failure.get("kind")), retry=True)
            else:
                at = 0
                for first, last, count in entry["ranges"]:
                    self._succeed(piece.numbers[first:last], who, list(rows[at : at + count]))
                    at += count
                for index, message, retry in entry["errors"]:
                    self._fail(piece.numbers[index], piece, who, message, retry=retry)
                self._slowest = max(self._slowest, (time.monotonic() - began) / len(piece.numbers))
            self._changed.notify_all()

    def _succeed(self, numbers: Sequence[int], who: str, rows: list[list[Any]]) -> None:
        shares = _shares(self.type, [self.items[number] for number in numbers], rows)
        for number, share in zip(numbers, shares, strict=True):
            self.fates[number] = Fate(who, share)
        self.used[who] = self.used.get(who, 0) + len(numbers)

    def _fail(self, number: int, piece: Piece, who: str, message: str, *, retry: bool) -> None:
        if retry and piece.tries + 1 < MOST_TRIES:
            self._returned.append(Piece((number,), piece.tries + 1, piece.avoid | {who}))
        else:
            self.fates[number] = Fate(who, error=message)

    # On a node

    def _begin(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name="bridge", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _remote(self, seat: Seat, first: Piece) -> None:
        """One place on a node, until there is nothing more for it."""
        peer = Peer(seat.url, seat.api_key)
        piece: Piece | None = first
        wait = BUSY_SECONDS[0]
        try:
            while piece is not None:
                try:
                    entry = self._on_node(peer, seat.node_id, piece)
                except Busy:
                    self._give_back(piece, seat.node_id, tried=False)
                    self._ended.wait(wait)
                    wait = min(wait * 2, BUSY_SECONDS[1])
                except PeerError as error:
                    self._give_up(seat.node_id, str(error))
                    self._give_back(piece, seat.node_id, tried=True)
                    return
                else:
                    wait = BUSY_SECONDS[0]
                    if entry is None:
                        self._give_back(piece, seat.node_id, tried=False)
                    else:
                        self._settle(piece, seat.node_id, entry, entry.get("rows") or [])
                piece = self._next(seat.node_id)
        except Exception as error:
            logger.exception("node %s is left out", seat.node_id)
            self._give_up(seat.node_id, str(error))
            if piece is not None:
                self._give_back(piece, seat.node_id, tried=True)
        finally:
            peer.close()

    def _give_up(self, node_id: str, why: str) -> None:
        with self._changed:
            if self.stopped or node_id in self.failed:
                return
            self.failed[node_id] = why
            self._changed.notify_all()
        logger.warning("node %s is left out: %s", node_id, why)
        self._lost(node_id, why)

    def _on_node(self, peer: Peer, node_id: str, piece: Piece) -> dict[str, Any] | None:
        """What a node made of a piece, as a report's entry; None where that was not waited for. Raises PeerError."""
        with self._changed:
            self._sent += 1
            task_id = f"{self.name}-{self._sent}"
        items = [self.items[number] for number in piece.numbers]
        left = max(self._deadline - time.monotonic(), 1.0)
        body = drive.execute_body(
            task_id, self.type, self.params, items, priority=self.priority, timeout=min(left, self.timeout)
        )
        began = time.monotonic()
        status = peer.execute(body)
        silent = 0
        while status.get("status") not in ("completed", "failed", "cancelled"):
            least, most = POLL_SECONDS
            self._ended.wait(min(max((time.monotonic() - began) * POLL_SHARE, least), most))
            if self._over() or piece.decided:
                with suppress(PeerError):
                    peer.cancel(task_id)
                return None
            if node_id in self.failed:
                return None
            try:
                status = peer.task(task_id)
                silent = 0
            except Unreachable:
                # One lost connection is not yet a lost node.
                silent += 1
                if silent == SILENT_TRIES:
                    raise
        if "result" not in status:
            status = peer.task(task_id)
        return drive.entry_of(0, self.type, 0, items, status, self.params)

    # On this machine

    def _may_hire(self) -> bool:
        return self._local_workers > 0

    def _hire(self) -> None:
        """Workers on this machine, while there is something that only they can do; the caller holds the lock."""
        if not self._may_hire():
            if not self._usable():
                for piece in [*self._returned, Piece(tuple(range(self._uncut, len(self.items))))]:
                    for number in piece.numbers:
                        self.fates.setdefault(number, Fate("", error="; ".join(self.failed.values()) or "no node"))
            return
        usable = self._usable()
        mine = [piece for piece in self._returned if not usable - piece.avoid]
        wanted = len(mine) + (len(self.items) - self._uncut if not usable else 0)
        while self._locals < min(self._local_workers, wanted):
            self._locals += 1
            self._lanes += 1
            self._begin(self._here)

    def _here(self) -> None:
        """One worker process, until there is nothing more for it."""
        folder = Path(tempfile.mkdtemp(prefix="cascade-bridge-"))
        worker = Worker(folder)
        self._local.append(worker)
        try:
            while (piece := self._next(LOCAL)) is not None:
                self._work_here(worker, folder, piece)
        finally:
            worker.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def _work_here(self, worker: Worker, folder: Path, piece: Piece) -> None:
        items = [self.items[number] for number in piece.numbers]
        shard = {"allocation": 0, "type": self.type, "params": self.params, "start": 0, "items": items}
        left = max(self._deadline - time.monotonic(), 0.1)
        try:
            entry = worker.run(shard, left)
            rows = rows_of(entry, executors.get(self.type).dataset, folder) if not entry.get("failure") else []
        except (Lost, TimeoutError, OSError, ValueError) as error:
            entry, rows = {"failure": {"kind": "crash", "message": str(error)}}, []
        self._settle(piece, LOCAL, entry, rows)


def default_workers() -> int:
    return min(os.cpu_count() or 1, 8)


def _shares(type: str, items: Sequence[Item], rows: list[list[Any]]) -> list[list[list[Any]]]:
    """``rows`` of several items, in the items' order, taken apart; where they do not say whose they are, the first
    item has them all.
    """
    if type == drive.IMPORT and len(items) > 1:
        shares: list[list[list[Any]]] = [[] for _ in items]
        at = 0
        for row in rows:
            while at < len(items) and not _of(items[at], row):
                at += 1
            if at == len(items):
                break
            shares[at].append(row)
        else:
            return shares
    return [rows, *([] for _ in items[1:])]


def _of(item: Item, row: Sequence[Any]) -> bool:
    if item_key(item) != row[0]:
        return False
    if not isinstance(item, dict):
        return True
    return (item.get("start_date") or "") <= str(row[1])[:10] <= (item.get("end_date") or "9999-12-31")
