"""One run of a task on this machine alone: shards to worker processes, rows to Parquet files, a summary beside."""

from __future__ import annotations

import datetime as dt
import heapq
import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nodes import executors
from nodes.agent.configuration import of_task
from nodes.executors.base import Dataset, Executor, item_key
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

if TYPE_CHECKING:
    import pyarrow as pa

    from nodes.agent.pool import Pool
    from nodes.agent.pool import Task as Bundle

SHARD_ITEMS = 50
"""Most items in one shard of a task that leaves its size open."""
SHARDS_PER_WORKER = 8
LONGEST_BACKOFF = 300.0
PART_ROWS = 200_000
"""Rows that are held in memory before they are a file."""


@dataclass(slots=True)
class Shard:
    """Items [start, start + len(items)) and how often they were tried."""

    start: int
    items: list[Any]
    attempt: int = 1


@dataclass(slots=True)
class Outcome:
    """What became of a run's items."""

    done: int = 0
    rows: int = 0
    failed: dict[int, str] = field(default_factory=dict)


class Parts:
    """Rows on their way into ``part-1.parquet`` and so on; a file is there as a whole or not at all."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.files: list[str] = []
        self._folder = folder
        self._dataset = dataset
        self._tables: list[pa.Table] = []
        self._rows = 0

    def add(self, rows: Any) -> None:
        """A table, or a list of rows as entries carry them."""
        from nodes.executors.rows import to_table

        self._tables.append(to_table(self._dataset, rows))
        self._rows += self._tables[-1].num_rows
        if self._rows >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = f"part-{len(self.files) + 1}.parquet"
        temp = self._folder / f"{name}.tmp"
        pq.write_table(pa.concat_tables(self._tables), temp, compression="zstd")
        os.replace(temp, self._folder / name)
        self.files.append(name)
        self._tables, self._rows = [], 0


class OfflineRun:
    """One run of ``task`` (as the configuration has it) by ``workers`` processes, into a new folder below ``out``."""

    def __init__(
        self, task: dict[str, Any], content: dict[str, Any], out: Path, workers: int, around: Surroundings
    ) -> None:
        self.task = task
        self.type: str = task["type"]
        if self.type not in executors.runnable():
            raise FieldError(
                "type", f"{self.type!r} cannot be run here; what can is: {', '.join(executors.runnable())}"
            )
        executor = executors.get(self.type)
        settings, sources = of_task(content, task)
        self.params = executor.check(executor.merged(settings.get(self.type, {}), task["params"]))
        self.items = executor.begin(_items(task, sources, executor), self.params)
        if executor.expected(self.items, self.params) not in (None, len(self.items)):
            raise FieldError("params", f"{self.type} as asked for is planned by a parent as it goes: run it there")
        self._most = executor.most_items(self.params)
        self._grows = executor.grows
        self._seen = {item_key(item) for item in self.items}
        self.workers = workers
        self.around = around
        self.outcome = Outcome()
        stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
        self.folder = _new_folder(out, f"{re.sub(r'[^A-Za-z0-9_-]+', '-', task['name']).strip('-') or 'task'}-{stamp}")
        self.parts = Parts(self.folder, executor.dataset)
        self._queue = deque(self._shards())
        self._later: list[tuple[float, int, Shard]] = []
        """Those that wait out their back-off: (monotonic time, start, shard), a heap."""
        self._busy: dict[Bundle, Shard] = {}
        self.interrupted = False

    def run(self, version: int, tell: Any) -> dict[str, Any]:
        """All items, each up to ``max_attempts`` times; returns the summary. ``tell`` hears (items ended, items)."""
        from nodes.agent.pool import Pool

        began = time.monotonic()
        started = dt.datetime.now(dt.UTC)
        with TemporaryDirectory(prefix=".work-", dir=self.folder) as segments:
            pool = Pool(self.workers, segments, lambda _allocation, _done: None, self.around)
            try:
                while self._queue or self._later or self._busy:
                    self._fill(pool)
                    self._wait(Path(segments))
                    tell(self.outcome.done + len(self.outcome.failed), len(self.items))
            except KeyboardInterrupt:
                self.interrupted = True  # what is done so far is kept
            finally:
                pool.stop()
        self.parts.flush()
        return self._summary(version, started, time.monotonic() - began)

    def _shards(self) -> Iterator[Shard]:
        size = self.task["shard_size"] or max(
            1, min(SHARD_ITEMS, math.ceil(len(self.items) / (SHARDS_PER_WORKER * self.workers)))
        )
        return (Shard(at, self.items[at : at + size]) for at in range(0, len(self.items), size))

    def _fill(self, pool: Pool) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            self._queue.append(heapq.heappop(self._later)[2])
        while self._queue and len(self._busy) < self.workers:
            shard = self._queue.popleft()
            bundle = {"allocation": 0, "type": self.type, "params": self.params}
            started = pool.start([{**bundle, "start": shard.start, "items": shard.items}], self.task["timeout"])
            self._busy[started] = shard

    def _wait(self, segments: Path) -> None:
        """Until something ends, or is due."""
        left = max(self._later[0][0] - time.monotonic(), 0.01) if self._later else None
        if not self._busy:
            time.sleep(left or 0)
            return
        for bundle in wait(self._busy, left, FIRST_COMPLETED).done:
            self._settle(bundle, segments)  # type: ignore[arg-type]

    def _settle(self, bundle: Bundle, segments: Path) -> None:
        shard = self._busy.pop(bundle)
        try:
            (entry,) = bundle.result()
        except Exception as error:  # the worker crashed, hung or could not be started
            self._lost(shard, str(error) or f"took longer than its time-out, {self.task['timeout']:g} s")
            return
        if "failure" in entry:
            self._lost(shard, entry["failure"]["message"])
            return
        if entry.get("segment"):
            # It stays to the end: two shards with the same rows share one.
            self.parts.add(_segment(segments / f"{entry['segment']}.arrow"))
        elif entry.get("rows"):
            self.parts.add(entry["rows"])
        for first, stop, rows in entry["ranges"]:
            self.outcome.done += stop - first
            self.outcome.rows += rows
        for _, outcome in entry.get("outcomes") or ():
            self._found(outcome.get("found") or ())
        for index, message, retry in entry["errors"]:
            self._failed(Shard(index, [shard.items[index - shard.start]], shard.attempt), message, retry)

    def _found(self, items: Iterable[Any]) -> None:
        """Further items of this run, each once."""
        for item in items:
            room = self._most is None or len(self.items) < self._most
            if room and self._grows and item_key(item) not in self._seen:
                self._seen.add(item_key(item))
                self._queue.append(Shard(len(self.items), [item]))
                self.items.append(item)

    def _lost(self, shard: Shard, message: str) -> None:
        """Nothing of it is known. One item alone counts an attempt; of several each is tried alone, to find which."""
        if len(shard.items) == 1:
            self._failed(shard, message, True)
            return
        alone = [Shard(shard.start + at, [item], shard.attempt) for at, item in enumerate(shard.items)]
        self._queue.extendleft(reversed(alone))

    def _failed(self, shard: Shard, message: str, retry: bool) -> None:
        if retry and shard.attempt < self.task["max_attempts"]:
            wait_ = min(self.task["backoff"] * 2 ** (shard.attempt - 1), LONGEST_BACKOFF)
            again = Shard(shard.start, shard.items, shard.attempt + 1)
            heapq.heappush(self._later, (time.monotonic() + wait_, again.start, again))
        else:
            self.outcome.failed[shard.start] = message

    def _summary(self, version: int, started: dt.datetime, seconds: float) -> dict[str, Any]:
        outcome = self.outcome
        summary = {
            "task": self.task["name"],
            "version": version,
            "type": self.type,
            "params": self.params,
            "items": len(self.items),
            "done": outcome.done,
            "failed": len(outcome.failed),
            "rows": outcome.rows,
            "files": self.parts.files,
            "started_at": started.isoformat(),
            "seconds": round(seconds, 3),
            "interrupted": self.interrupted,
            "errors": [
                {"index": index, "item": item_key(self.items[index]), "error": message}
                for index, message in sorted(outcome.failed.items())
            ],
        }
        temp = self.folder / "summary.json.tmp"
        temp.write_text(json.dumps(summary, indent=2, ensure_ascii=False))
        os.replace(temp, self.folder / "summary.json")
        return summary


def _items(task: dict[str, Any], sources: list[dict[str, Any]], executor: type[Executor]) -> list[Any]:
    if task.get("items_column"):
        raise FieldError("items_column", f"task {task['name']!r} goes through a table of the parent's: run it there")
    items = task["items"] or [source["key"] for source in sources if source["kind"] == task["source_kind"]]
    if not items and not executor.items_optional:
        raise FieldError("items", f"task {task['name']!r} has none, and there is no active source of its kind")
    known = {each["key"]: each for each in sources if each["kind"] == executor.source_kind and each["address"]}
    return [
        executor.resolve(item, known[item]["address"], known[item]["name"])
        if isinstance(item, str) and item in known
        else item
        for item in items
    ]


def _new_folder(out: Path, name: str) -> Path:
    """Two runs that begin in one second have a folder each."""
    for number in range(1, 1000):
        folder = out / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not out.is_dir():
                raise
            continue
        return folder
    raise FileExistsError(17, "is full of runs of this second", str(out))


def _segment(file: Path) -> Any:
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        return pa.ipc.open_file(source).read_all()
