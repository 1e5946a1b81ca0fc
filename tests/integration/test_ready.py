"""``GET /readyz``: 503 and why, while this process cannot do its work; and ``/healthz``, which looks nothing up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.testing import HttpCommunicator
from django.db import OperationalError
from django.db.migrations.recorder import MigrationRecorder

from api import health
from cascade.asgi import application
from dispatch import leading, metrics
from dispatch.relay import place
from dispatch.results import saver


def asked(path: str, method: str = "GET") -> tuple[int, Any]:
    communicator = HttpCommunicator(application, method, path, headers=[(b"host", b"10.0.0.7:8000")])
    answer = async_to_sync(communicator.get_response)(timeout=30)
    return answer["status"], json.loads(answer["body"] or b"{}")


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[health.Probe]:
    """A fresh one, which remembers no other test's database, with the result store open."""
    made = health.Probe()
    monkeypatch.setattr(health, "probe", made)
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(saver, "_store", object())
    yield made
    made._thread.shutdown()


class Loop:
    """Ends when it is told."""

    def __init__(self, name: str) -> None:
        self.end = threading.Event()
        self._thread = threading.Thread(target=self.end.wait, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.end.set()
        self._thread.join()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    made = Loop("dispatcher")
    monkeypatch.setattr(leading, "running", [made])
    monkeypatch.setattr(metrics, "turns", {})
    made.start()
    yield made
    made.stop()


pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.usefixtures("probe")
def test_a_server_with_all_it_needs_is_ready() -> None:
    status, body = asked("/readyz")
    assert (status, body["status"]) == (200, "ready")
    assert set(body["checks"].values()) == {"ok"}
    assert asked("/readyz", "POST")[0] == asked("/healthz", "DELETE")[0] == 405


class Away:
    """A database server that refuses connections."""

    def cursor(self) -> Any:
        raise OperationalError("connection to db.internal as cascade:sesame refused")


@pytest.mark.usefixtures("probe")
def test_a_database_that_is_away_is_the_reason_and_nothing_of_its_error_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "connection", Away())
    status, body = asked("/readyz")
    assert (status, body["detail"]) == (503, "database: cannot be reached")
    assert "sesame" not in json.dumps(body)
    assert asked("/healthz") == (200, {"status": "ok"})


@pytest.mark.usefixtures("probe")
def test_migrations_that_are_missing_are_the_reason_until_they_are_there() -> None:
    applied = MigrationRecorder.Migration.objects
    newest = applied.filter(app="dispatch").order_by("-id").first()
    assert newest is not None
    name = newest.name
    newest.delete()
    try:
        status, body = asked("/readyz")
        assert (status, body["checks"]["migrations"]) == (503, "not applied: manage.py migrate")
    finally:
        applied.create(app="dispatch", name=name)
    assert asked("/readyz")[0] == 200


def test_without_the_result_store_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "probe", health.Probe())
    status, body = asked("/readyz")
    assert (status, body["detail"]) == (503, "store: the result store is not open")


@pytest.mark.usefixtures("probe")
def test_a_loop_that_has_ended_or_hangs_is_the_reason(loop: Loop) -> None:
    assert asked("/readyz")[0] == 200
    metrics.turns["dispatcher"] = time.monotonic() - 61
    status, body = asked("/readyz")
    assert (status, body["checks"]["loops"]) == (503, "dispatcher has not moved for 61 s")
    loop.stop()
    status, body = asked("/readyz")
    assert (status, body["checks"]["loops"]) == (503, "dispatcher has ended")


@pytest.mark.usefixtures("probe", "relay")
def test_a_relay_is_ready_when_its_parent_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Loop("upward")
    monkeypatch.setattr(leading, "running", [line])
    line.start()
    try:
        assert asked("/readyz")[1]["checks"]["parent"] == "has not been reached yet"
        monkeypatch.setattr(place, "here", place.Place(path=[["id", "root"]]))
        assert asked("/readyz")[0] == 200
        monkeypatch.setattr(place, "here", place.Place(path=[["id", "root"]], heard=time.monotonic() - 40))
        status, body = asked("/readyz")
        assert (status, body["checks"]["parent"]) == (503, "silent for 40 s")
    finally:
        line.stop()


def test_a_database_that_does_not_answer_is_told_so_in_time_and_asked_once(
    probe: health.Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, looks = threading.Event(), []

    def look() -> health.Readiness:
        looks.append(1)
        free.wait(30)
        return health.Readiness({"database": "ok"})

    monkeypatch.setattr(probe, "look", look)
    monkeypatch.setattr(health, "ANSWER_SECONDS", 0.05)
    assert asked("/readyz")[0] == asked("/readyz")[0] == 503
    assert looks == [1]
    free.set()
    probe.begin().result(30)
    monkeypatch.setattr(health, "ANSWER_SECONDS", 30.0)
    assert asked("/readyz")[0] == 200
