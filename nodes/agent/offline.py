"""``python -m nodes.agent tasks`` and ``run TASK``: what the parent told last, on this machine and without the parent.

The same executors in the same worker processes; how a run goes is in ``offline_run``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodes import surroundings
from nodes.agent.config import load
from nodes.agent.configuration import Damaged, Store, of_task
from nodes.agent.offline_run import OfflineRun
from nodes.protocol import CascadeError, FieldError, NotFound

FAILED_SHOWN = 10


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 when everything asked for was done."""
    options = parser().parse_args(argv)
    try:
        return _tasks(options) if options.verb == "tasks" else _run(options)
    except Damaged as error:
        print(
            f"error: this machine has no configuration of a parent that could be used ({error}).\n"
            "An agent fetches it when it is connected: start python -m nodes.agent --parent … once.",
            file=sys.stderr,
        )
    except CascadeError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        where = error.filename or getattr(options, "out", options.data_dir)
        print(f"error: {where}: {error.strerror}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nodes.agent", description="What the parent told last, without the parent."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("tasks", help="the tasks of the last configuration")
    run = verbs.add_parser("run", help="runs one of them on this machine")
    run.add_argument("task", help="its name")
    run.add_argument("--out", type=Path, default=Path("."), help="below it a folder for the run is made (default .)")
    run.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes (default: CPUs)")
    for each in (listing, run):
        each.add_argument("--data-dir", help="the agent's (CASCADE_AGENT_DIR)")
        each.add_argument("--config", metavar="FILE", help="the agent's settings, where --data-dir is not given")
        each.add_argument("--json", action="store_true", help="for programs")
    return parser


def _folder(options: argparse.Namespace) -> Path:
    """The agent's data folder. No key is needed to read it."""
    given = options.data_dir or os.environ.get("CASCADE_AGENT_DIR")
    if given:
        return Path(given).expanduser().resolve()
    return load(options, served=True).data_dir


def _tasks(options: argparse.Namespace) -> int:
    version, content = Store(_folder(options)).read()
    tasks = [
        {
            **{name: task[name] for name in ("name", "type", "cron")},
            "items": _count(task, of_task(content, task)[1]),
        }
        for task in content["tasks"]
    ]
    if options.json:
        print(json.dumps({"version": version.number, "tasks": tasks}, indent=2))
        return 0
    print(f"configuration {version.number}, {len(tasks)} tasks, {len(content['sources'])} sources")
    width = max((len(task["name"]) for task in tasks), default=0)
    for task in tasks:
        print(f"{task['name']:{width}}  {task['type']:12}  {task['items']:>8} items")
    for name in content["left_out"]["tasks"]:
        print(f"{name}: too large to be sent to nodes; only the parent can run it")
    return 0


def _run(options: argparse.Namespace) -> int:
    if not 1 <= options.workers <= 1000:
        raise FieldError("workers", f"{options.workers} is not from 1 to 1000")
    version, content = Store(_folder(options)).read()
    task = _task(options.task, content)
    around = load(options, served=True).surroundings
    surroundings.settle(around)  # params are checked in this process, too
    run = OfflineRun(task, content, options.out, options.workers, around)
    summary = run.run(version.number, _teller(options.json))
    if options.json:
        print(json.dumps({**summary, "folder": str(run.folder)}, indent=2))
    else:
        print(
            f"{task['name']}: {summary['done']} of {summary['items']} items done, {summary['failed']} failed, "
            f"{summary['rows']} rows in {run.folder} ({summary['seconds']:.1f} s)"
        )
        for error in summary["errors"][:FAILED_SHOWN]:
            print(f"  {error['item']}: {error['error']}", file=sys.stderr)
    return 0 if summary["done"] == summary["items"] else 1


def _task(name: str, content: dict[str, Any]) -> dict[str, Any]:
    for task in content["tasks"]:
        if task["name"] == name:
            found: dict[str, Any] = task
            return found
    if name in content["left_out"]["tasks"]:
        raise NotFound(f"task {name!r} is too large to be sent to nodes; only the parent can run it")
    known = ", ".join(task["name"] for task in content["tasks"][:20]) or "none"
    raise NotFound(f"the configuration has no active task {name!r}; there are: {known}")


def _count(task: dict[str, Any], sources: list[dict[str, Any]]) -> int:
    return len(task["items"]) or sum(source["kind"] == task["source_kind"] for source in sources)


def _teller(quiet: bool) -> Any:
    """Progress on a terminal, on one line."""
    shown = [0.0]

    def tell(ended: int, count: int) -> None:
        now = time.monotonic()
        if quiet or not sys.stderr.isatty() or (now - shown[0] < 0.2 and ended < count):
            return
        shown[0] = now
        print(f"\r{ended} of {count} items", end="\n" if ended == count else "", file=sys.stderr, flush=True)

    return tell
