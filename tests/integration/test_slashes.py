"""Addresses of the dialects with slashes too many, through the whole ASGI application."""

from __future__ import annotations

import pytest
from channels.testing import HttpCommunicator

from cascade.asgi import application


async def asked(path: str) -> int:
    """The status that comes back to one who has no key."""
    sent = HttpCommunicator(application, "GET", "/", headers=[(b"host", b"localhost")])
    # It would read the first part of "//api" as a host.
    sent.scope["path"] = path
    return int((await sent.get_response(timeout=30))["status"])


@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "path",
    [
        "//api/v1/cascade/feeds",
        "/api/v1//wx/cascade/feeds",
        "/api/v1/cascade/feeds//",
        "/api//distribution//devices",
        "///api/distribution/tasks/w1//pull",
    ],
)
async def test_clients_that_join_base_and_path_as_they_come_are_served(path: str) -> None:
    assert await asked(path) == 401


@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/api/v1//nodes", "//v1/api/cascade/feeds", "/api/v1/cascade//nothing"])
async def test_other_addresses_stay_as_they_are(path: str) -> None:
    assert await asked(path) == 404
