"""Fixtures that several files here ask for: who looks, the overview, the clock, a folder for results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from api import overview as overviews
from dispatch.lifecycle import kept
from dispatch.relay import place
from tests.integration.factory import Clock
from tests.integration.kinds import registered
from tests.integration.native import Api


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> None:
    """Numbers of runs come again when a test's transaction is rolled back; in production they never do."""
    for read_once in (kept.about, kept.beyond, kept.remembered, kept.frozen):
        read_once.cache_clear()


@pytest.fixture
def api(admin_client: Client) -> Api:
    return Api(admin_client)


@pytest.fixture
def staff() -> User:
    return User.objects.create_user("anna", password="a long pass phrase", is_staff=True)


@pytest.fixture
def browser(client: Client, staff: User) -> Client:
    """Signed in as a member of the staff."""
    client.force_login(staff)
    return client


@pytest.fixture
def overview(monkeypatch: pytest.MonkeyPatch) -> overviews.Overview:
    """The one of this process, which remembers nothing of another test's database."""
    fresh = overviews.Overview()
    monkeypatch.setattr(overviews, "shown", fresh)
    return fresh


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The parent's, to be put forward."""
    return Clock(monkeypatch)


@pytest.fixture
def folder(settings: Any, tmp_path: Path) -> Path:
    """Results and spool of this test alone."""
    settings.CASCADE = settings.CASCADE.model_copy(update={"data_dir": tmp_path})
    return tmp_path


@pytest.fixture
def relay(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This server has a parent of its own, which it has not heard of yet."""
    settings.CASCADE = settings.CASCADE.model_copy(update={"role": "relay"})
    monkeypatch.setattr(place, "here", place.Place())


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task types of ``kinds``."""
    with registered(monkeypatch):
        yield
