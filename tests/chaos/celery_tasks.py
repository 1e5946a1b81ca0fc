"""The Celery side of ``celery_peer``: the application, configured for late acknowledgement, and its task.

``CELERY_PEER`` is a JSON object: broker (a redis address), table (a SQLite file), seconds (of one item),
visibility (time-out in seconds). One row is appended for each execution of the task that got to its end.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from typing import Any

from celery import Celery

GIVEN: dict[str, Any] = json.loads(os.environ["CELERY_PEER"])

app = Celery("peer", broker=GIVEN["broker"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": GIVEN["visibility"]},
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_send_task_events=False,
)


@app.task(name="echo")
def echo(item: str) -> None:
    """Waits as long as one item takes, and appends the item's row."""
    time.sleep(GIVEN["seconds"])
    with sqlite3.connect(GIVEN["table"], timeout=30) as table:
        table.execute("INSERT INTO rows (item, worker) VALUES (?, ?)", (item, os.getppid()))
