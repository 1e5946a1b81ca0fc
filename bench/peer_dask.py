"""The peer: dask.distributed with a scheduler and workers of several threads, each a process of its own as ours are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from distributed import Client

from cascade.local import ROOT, free_port


def noop(item: int) -> int:
    return item


@dataclass(frozen=True)
class Dask:
    client: Client
    scheduler: int
    workers: list[int]
    """Process ids."""

    def seconds(self, tasks: int) -> float:
        """From the submission of ``tasks`` no-op tasks until their results are here."""
        began = time.perf_counter()
        # pure=False: otherwise equal calls are answered from results it still has.
        results = self.client.gather(self.client.map(noop, range(tasks), pure=False))
        elapsed = time.perf_counter() - began
        if results != list(range(tasks)):
            raise RuntimeError("dask did not return what was submitted")
        return elapsed


@contextmanager
def dask(workers: int, threads: int) -> Iterator[Dask]:
    """A scheduler and ``workers`` on this machine, without dashboards and nannies, which would cost them time."""
    address = f"tcp://127.0.0.1:{free_port()}"
    # They unpickle functions of this package.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started: list[subprocess.Popen[bytes]] = []
    with TemporaryDirectory(prefix="dask-bench-") as folder:

        def start(*command: str) -> int:
            popen = subprocess.Popen(
                [sys.executable, "-m", *command, "--no-dashboard"],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            started.append(popen)
            return popen.pid

        try:
            scheduler = start("distributed.cli.dask_scheduler", "--host", address)
            options = ["--nthreads", str(threads), "--nworkers", "1", "--no-nanny", "--local-directory", folder]
            pids = [start("distributed.cli.dask_worker", address, *options) for _ in range(workers)]
            with Client(address, timeout=60) as client:
                client.wait_for_workers(workers, timeout=60)
                yield Dask(client, scheduler, pids)
                client.shutdown()
        finally:
            # Nothing they hold is worth the 30 s that a worker may take over its farewell.
            for popen in started:
                try:
                    popen.wait(2)
                except subprocess.TimeoutExpired:
                    popen.kill()
                    popen.wait()
