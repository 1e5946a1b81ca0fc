"""What a process without a web server answers on its ``dispatcher_port``: real requests over a socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from api import health, metrics
from cascade.watched import CannotListen, Watched

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(health, "probe", health.Probe())
    monkeypatch.setattr(metrics, "database", metrics.Database())
    served = Watched("127.0.0.1", 0)
    served.start()
    yield f"http://127.0.0.1:{served.port}"
    served.stop()


def asked(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=30)


def test_it_tells_what_a_web_process_tells(url: str) -> None:
    assert asked(f"{url}/healthz").json() == {"status": "ok"}
    ready = asked(f"{url}/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (503, "store: the result store is not open")
    page = asked(f"{url}/metrics?x=1")
    assert page.headers["Content-Type"] == metrics.CONTENT_TYPE
    assert "\ncascade_allocation_pass_seconds_count " in page.text
    assert asked(f"{url}/admin/").status_code == 404
    assert requests.post(f"{url}/metrics", timeout=30).status_code == 501


def test_it_asks_for_the_token_as_a_web_process_does(url: str, settings: Any) -> None:
    assert asked(f"{url}/metrics", Forwarded="for=203.0.113.9").status_code == 403
    settings.CASCADE = settings.CASCADE.model_copy(update={"metrics_token": "secret"})
    assert asked(f"{url}/metrics").status_code == 401
    assert asked(f"{url}/metrics", Authorization="Bearer secret").status_code == 200


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"dispatcher_port: {port} cannot be listened on"):
            Watched("127.0.0.1", port).start()
