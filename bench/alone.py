"""One process that does the items of a run one after the other, without Cascade: the peer of ``bench.kinds``.

``python -m bench.alone`` reads a line of JSON per job ({"type", "params", "items"}) and answers with its seconds. The
executors are the same; what it leaves out is a parent, children, and saving.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nodes import executors, surroundings


class Alone:
    """Such a process, for as long as the ``with`` of ``running`` lasts; its imports are done after a first job."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(self, task_type: str, params: dict[str, Any], items: list[Any]) -> float:
        """Raises RuntimeError where an item failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"type": task_type, "params": params, "items": items}) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError("the process alone has ended")
        return float(json.loads(answer))


@contextmanager
def running() -> Iterator[Alone]:
    argv = [sys.executable, "-m", "bench.alone"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Alone(process)
        finally:
            process.kill()


def optimised(params: dict[str, Any]) -> float:
    """The trials of an ``optimization`` as optuna alone makes them: suggest, evaluate, tell, one after the other."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    executor = executors.get("optimization")
    checked = executor.check(params)
    one = executor(checked)
    value = executor.dataset.names.index("value")

    def objective(trial: optuna.Trial) -> float:
        space = params["space"].items()
        chosen = {name: trial.suggest_int(name, each["low"], each["high"]) for name, each in space}
        rows = one.run({"key": f"trial-{trial.number:05}", "trial": trial.number, "params": chosen})
        assert isinstance(rows, list)
        return float(rows[0][value])

    began = time.perf_counter()
    sampler = optuna.samplers.TPESampler(seed=params["seed"])
    optuna.create_study(direction="maximize", sampler=sampler).optimize(objective, n_trials=params["trials"])
    return time.perf_counter() - began


def work(type: str, params: dict[str, Any], items: list[Any]) -> float:
    executor = executors.get(type)
    checked = executor.check(params)
    begun = executor.begin(items, checked)
    began = time.perf_counter()
    one = executor(checked)
    kept = [one.run(item) for item in begun]
    assert len(kept) == len(begun)
    return time.perf_counter() - began


if __name__ == "__main__":
    surroundings.settle(surroundings.Surroundings(allowed_networks=("127.0.0.0/8",)))
    for line in sys.stdin:
        job = json.loads(line)
        alone = optimised(job["params"]) if job["type"] == "optimization" else work(**job)
        print(json.dumps(alone), flush=True)
