"""``GET /healthz`` of a parent, as what watches it asks: by an address, without TLS."""

from __future__ import annotations

import pytest
from channels.testing import HttpCommunicator

from cascade.asgi import application


async def status_of(path: str) -> int:
    asked = HttpCommunicator(application, "GET", path, headers=[(b"host", b"10.0.0.7:8000")])
    return int((await asked.get_response(timeout=30))["status"])


@pytest.mark.asyncio
async def test_it_answers_whatever_it_is_called_and_whether_or_not_there_is_tls(settings):
    settings.SECURE_SSL_REDIRECT = True
    assert await status_of("/healthz") == 200


@pytest.mark.asyncio
async def test_pages_answer_to_allowed_hosts_only():
    assert await status_of("/") == 400
