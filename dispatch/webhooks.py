"""Webhooks: when a run of a task with a webhook has ended, its address is told. What becomes of a delivery is written
here only.

The row is made in the transaction that ends the run (``lifecycle.ends``), so that a crash of the parent loses no call.
Each call is made at least once; its id lets a receiver drop repetitions. A receiver checks a call so:

    signed = X-Cascade-Timestamp + "." + X-Cascade-Delivery + "." + body        (bytes)
    X-Cascade-Signature == "sha256=" + hex(HMAC-SHA256(webhook_secret, signed)), compared in constant time,
    and the timestamp (seconds since 1970) is not older than a receiver's own patience.

What is sent is made by ``dispatch.webhook_bodies``; it goes through the door of ``nodes.fetching``, so receivers in
networks that are not public need the setting ``allowed_networks``.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import random
import threading
from typing import NamedTuple

from django.conf import settings
from django.db import close_old_connections, connection
from django.db.models import F
from django.utils import timezone

from dispatch import events, leading, synclog
from dispatch.models import Delivery, Run
from dispatch.webhook_bodies import body
from nodes.fetching import Fetcher, FetchFailed, Limits, NoConnection, Refused
from nodes.protocol import FieldError, NotFound
from nodes.transactions import write

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""For a whole call, its connection included."""
LEASE_SECONDS = 30.0
"""Longer than a call can take: after a crash in the middle of one it is made again."""
FIRST_BACKOFF = 4.0
LONGEST_BACKOFF = 3600.0
POLL_SECONDS = 1.0
MOST_AT_ONCE = 8
"""Calls under way at a time, so that a slow receiver does not hold up the others."""
ERROR_LENGTH = 500
NEVER = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
"""``next_at`` of what is not to be sent: the index the loop looks at is on this column alone."""
DROPPED = (408, 429)
"""Of the 4xx those that may be answered otherwise a little later."""


class Answer(NamedTuple):
    """Of one call: its status, or None for no answer; why it is no success; whether another try makes sense."""

    status: int | None
    error: str
    again: bool
    wait: float = 0.0
    """Seconds that the receiver asked for."""


def retry(delivery_id: int) -> Delivery:
    """Makes the call again, with all its tries anew and the same id. Raises NotFound."""
    with write():
        anew = {"state": Delivery.State.WAITING, "attempts": 0, "next_at": timezone.now(), "error": ""}
        if not Delivery.objects.filter(pk=delivery_id).update(**anew):
            raise NotFound(f"there is no delivery {delivery_id}")
    events.webhooks.set()
    return Delivery.objects.get(pk=delivery_id)


def claim(now: dt.datetime, most: int) -> list[Delivery]:
    """Takes up to ``most`` of what is to be sent now; nobody else gets them before LEASE_SECONDS are over."""
    waiting = Delivery.objects.filter(next_at__lte=now, state=Delivery.State.WAITING).order_by("next_at")
    mine: list[Delivery] = []
    for delivery in waiting[:most]:
        with write():
            taken = Delivery.objects.filter(
                pk=delivery.pk, state=Delivery.State.WAITING, attempts=delivery.attempts, next_at=delivery.next_at
            ).update(attempts=F("attempts") + 1, next_at=now + dt.timedelta(seconds=LEASE_SECONDS))
        if taken:
            delivery.attempts += 1
            mine.append(delivery)
    return mine


def send(delivery: Delivery) -> None:
    """Makes one call that was claimed, and notes what came of it."""
    answer = _call(delivery)
    now = timezone.now()
    change: dict[str, object] = {"status": answer.status, "error": answer.error[:ERROR_LENGTH]}
    if not answer.error:
        change |= {"state": Delivery.State.DELIVERED, "delivered_at": now, "next_at": NEVER}
    elif answer.again and delivery.attempts < settings.CASCADE.webhook_attempts:
        wait = max(_backoff(delivery.attempts), min(answer.wait, LONGEST_BACKOFF))
        change |= {"next_at": now + dt.timedelta(seconds=wait)}
    else:
        change |= {"state": Delivery.State.FAILED, "next_at": NEVER}
        logger.warning("webhook %s about run %s is given up: %s", delivery.pk, delivery.run_id, answer.error)
    with write():
        # Zero rows: the call outlived its lease and was made again, or an operator asked for that.
        Delivery.objects.filter(pk=delivery.pk, attempts=delivery.attempts, state=Delivery.State.WAITING).update(
            **change
        )
    synclog.note(None, "webhook", "push", count=1, error=answer.error, extra={"run": delivery.run_id})


def signature(secret: str, timestamp: str, delivery: str, sent: bytes) -> str:
    """The header's value; the recipe is in this module's docstring."""
    signed = b".".join((timestamp.encode(), delivery.encode(), sent))
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def _backoff(attempts: int) -> float:
    """Seconds after so many tries; spread, so that calls that failed together do not come together again."""
    return min(FIRST_BACKOFF * 2.0 ** (attempts - 1), LONGEST_BACKOFF) * random.uniform(0.5, 1.0)


def _call(delivery: Delivery) -> Answer:
    run = Run.objects.select_related("task").filter(pk=delivery.run_id).first()
    task = run.task if run is not None else None
    if run is None or task is None:
        return Answer(None, "the run's task is gone, and with it what to send", again=False)
    try:
        sent, kind = body(run, task, delivery.pk)
    except FieldError as error:
        return Answer(None, str(error), again=False)
    timestamp = str(int(timezone.now().timestamp()))
    headers = {"Content-Type": kind, "User-Agent": "cascade-webhook", "Accept": "*/*"}
    for name, value in task.webhook_headers.items():
        # One of ours that the task words itself, whatever its case.
        headers = {own: text for own, text in headers.items() if own.lower() != name.lower()}
        headers[name] = value
    headers |= {"X-Cascade-Timestamp": timestamp, "X-Cascade-Delivery": str(delivery.pk)}
    if task.webhook_secret:
        headers["X-Cascade-Signature"] = signature(task.webhook_secret, timestamp, str(delivery.pk), sent)
    # The reasons of failures, not their messages: these would hold the address, which may hold a token.
    try:
        with Fetcher(Limits(seconds=ANSWER_SECONDS, connect_seconds=CONNECT_SECONDS)) as fetcher:
            answer = fetcher.post(delivery.url, sent, headers)
    except Refused as error:
        return Answer(None, f"not called: {error.reason}", again=False)
    except NoConnection as error:
        return Answer(None, f"no connection: {error.reason}", again=True)
    except FetchFailed as error:
        return Answer(None, error.reason, again=True)
    return _judged(answer.status, answer.headers.get("retry-after", ""))


def _judged(status: int, retry_after: str) -> Answer:
    if 200 <= status < 300:
        return Answer(status, "", again=False)
    if 300 <= status < 400:
        return Answer(status, f"answered {status}; redirects are not followed", again=False)
    wait = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 9 else 0.0
    return Answer(status, f"answered {status}", again=status >= 500 or status in DROPPED, wait=wait)


class Webhooks:
    """Sends what is due; runs in a thread of the parent's process, each call in one of its own."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._free = threading.Semaphore(MOST_AT_ONCE)
        self._thread = threading.Thread(target=self.run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop. A call under way is not waited for: without its end on record it is made again."""
        self._stopping.set()
        events.webhooks.set()
        self._thread.join(timeout=10)

    def run(self) -> None:
        while not self._stopping.is_set():
            events.webhooks.wait(POLL_SECONDS)
            events.webhooks.clear()
            if not leading.held():
                continue
            try:
                while leading.held() and not self._stopping.is_set() and self.once():
                    pass
            except Exception:
                logger.exception("webhooks could not be sent; they are tried again")
                close_old_connections()
                self._stopping.wait(POLL_SECONDS)
        connection.close()

    def once(self) -> bool:
        """Begins one call; False when nothing is due."""
        if not self._free.acquire(timeout=POLL_SECONDS):
            return False
        claimed: list[Delivery] = []
        try:
            claimed = claim(timezone.now(), 1)
            for delivery in claimed:
                threading.Thread(target=self._send, args=(delivery,), name="webhook", daemon=True).start()
        finally:
            if not claimed:
                self._free.release()
        return bool(claimed)

    def _send(self, delivery: Delivery) -> None:
        try:
            send(delivery)
        except Exception:
            logger.exception("webhook %s failed; it is tried again", delivery.pk)
        finally:
            self._free.release()
            connection.close()
