"""``python -m tests.scale.candidate``: a process that takes part in leading, and writes to a table while it leads.

Its loop writes a row ("tick") every few milliseconds; with TICK=begun a transaction locks the one row of "job" first,
and goes on when there has been a SIGUSR1. Everything else is as in ``manage.py dispatcher``.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
django.setup()

from django.db import connection, transaction  # noqa: E402

from dispatch import leading  # noqa: E402

EVERY_SECONDS = 0.02
go_on = threading.Event()


class Ticker:
    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_SECONDS):
            if not leading.held():
                continue
            try:
                self._tick()
            except Exception as error:
                print(type(error).__name__, error, flush=True)
                connection.close()
        connection.close()

    def _tick(self) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            if os.environ.get("TICK") == "begun":
                cursor.execute("UPDATE job SET by = %s", (os.getpid(),))
                go_on.wait()
            cursor.execute("INSERT INTO tick (pid) VALUES (%s)", (os.getpid(),))


def main() -> None:
    candidate = leading.Candidate(lambda: [Ticker()])
    candidate.start()
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGUSR1, lambda *_: go_on.set())
        while True:
            time.sleep(0.2)
    except KeyboardInterrupt:
        go_on.set()
        candidate.stop()


if __name__ == "__main__":
    main()
