"""What every answer says to browsers, whoever makes it; and the shipped production settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator

from api.middleware import ADMIN_POLICY, HEADERS, SecurityHeaders
from cascade.asgi import application
from cascade.local import ROOT

PRODUCTION = ROOT / "deploy" / "production.toml"
HOST = "cascade.example.org"


def scope(path: str, method: str = "GET", *headers: tuple[str, str], host: str = "localhost") -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in headers)],
        "client": ("127.0.0.1", 4711),
        "server": ("127.0.0.1", 8000),
    }


async def asked(asked_for: dict[str, Any], app: Any = application) -> tuple[int, dict[str, str]]:
    """(status, headers); a header that is sent twice is a list with commas, which none of ours may be."""
    talk = ApplicationCommunicator(app, asked_for)
    await talk.send_input({"type": "http.request", "body": b""})
    start = await talk.receive_output(timeout=60)
    while (await talk.receive_output(timeout=60)).get("more_body"):
        pass
    await talk.wait(timeout=60)
    headers: dict[str, str] = {}
    for name, value in start["headers"]:
        known = headers.get(name.decode().lower())
        headers[name.decode().lower()] = f"{known}, {value.decode()}" if known else value.decode()
    return start["status"], headers


ANSWERS = [
    ("/", "GET", 302),
    ("/admin/login/", "GET", 200),
    ("/admin/login/", "POST", 403),
    ("/admin/no/such/", "GET", 302),
    ("/administrator", "GET", 404),
    ("//admin/login/", "GET", 404),
    ("/static/unfold/js/alpine/alpine.js", "GET", 200),
    ("/healthz", "GET", 200),
    ("/sign-in/MQ/x-y/", "GET", 403),
    ("/no/such/page", "GET", 404),
    ("/no//such///page", "GET", 404),
    ("/api/docs", "GET", 401),
    ("/api/schema", "GET", 401),
    ("/api/v1/runs", "GET", 401),
    ("/api/v1/token", "GET", 405),
    ("/api/v1/no-such", "GET", 404),
    ("/api/v1/agent/beat", "POST", 401),
    ("/api/v1/agent/beat", "GET", 405),
    ("/api/v1/agent/segments/xyz", "PUT", 400),
    ("/api/v1/cascade/heartbeat", "POST", 401),
    ("/api/distribution/tasks", "GET", 401),
    ("/static/cascade/cascade.css", "GET", 200),
    ("/static/admin/css/base.css", "GET", 200),
    ("/static/no-such.css", "GET", 404),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("path", "method", "status"), ANSWERS)
async def test_every_answer_says_what_browsers_may_do_with_it(path, method, status):
    answered, headers = await asked(scope(path, method))
    assert answered == status
    for name, value in HEADERS.items():
        if name == b"content-security-policy" and path.startswith("/admin/"):
            value = ADMIN_POLICY
        # A sign-in link is a secret itself: its page tells nobody where it was.
        if name != b"cache-control" and not (name == b"referrer-policy" and path.startswith("/sign-in/")):
            assert headers[name.decode()] == value.decode(), name
    assert ("no-store" in headers["cache-control"]) is (status != 200 or not path.startswith("/static/"))
    assert "strict-transport-security" not in headers


@pytest.mark.django_db(transaction=True)
async def test_a_host_that_is_not_ours_is_answered_with_the_same_headers():
    status, headers = await asked(scope("/", host="evil.example"))
    assert status == 400
    assert headers["content-security-policy"] == HEADERS[b"content-security-policy"].decode()


async def test_what_an_answer_says_itself_holds():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"no-referrer")]})
        await send({"type": "http.response.body", "body": b""})

    _, headers = await asked(scope("/"), SecurityHeaders(app))
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_no_policy_allows_anything_inline_or_from_elsewhere():
    policy = HEADERS[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none'; ")
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "data:", "http:", "https:", "blob:"} & set(policy.split())
    assert "frame-ancestors 'none'" in policy


def test_the_admins_own_policy_lets_its_theme_evaluate_and_style_and_nothing_else():
    strict, own = (
        dict(part.split(" ", 1) for part in policy.decode().split("; "))
        for policy in (HEADERS[b"content-security-policy"], ADMIN_POLICY)
    )
    assert own.pop("script-src") == strict.pop("script-src") + " 'unsafe-eval'"
    assert own.pop("style-src") == strict.pop("style-src") + " 'unsafe-inline'"
    assert own == strict


# The shipped production settings


def run(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "DJANGO_"))}
    env |= {"CASCADE_CONFIG": str(PRODUCTION), "CASCADE_DATA_DIR": str(tmp_path / "data")}
    return subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_the_shipped_production_settings_pass_the_deployment_check_without_a_word(tmp_path):
    done = run(tmp_path, "manage.py", "check", "--deploy", "--fail-level", "DEBUG")
    assert done.returncode == 0, done.stderr
    assert "no issues (0 silenced)" in done.stdout


LOOK = """
import asyncio, json, django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.integration.test_security_headers import HOST, asked, scope
https = ("x-forwarded-proto", "https")
async def look():
    return {
        "page": await asked(scope("/admin/login/", "GET", https, host=HOST)),
        "plain": await asked(scope("/admin/login/", host=HOST)),
        "agent": await asked(scope("/api/v1/agent/beat", "POST", https, host=HOST)),
        "agent over http": await asked(scope("/api/v1/agent/beat", "POST", host=HOST)),
        "other host": await asked(scope("/admin/login/", "GET", https, host="localhost")),
    }
print(json.dumps(asyncio.run(look())))
"""


def test_with_the_shipped_production_settings_everything_goes_by_https(tmp_path):
    start = f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'cascade.settings'\n{LOOK}"
    done = run(tmp_path, "-c", start)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    status, headers = answers["page"]
    assert status == 200
    assert headers["strict-transport-security"] == "max-age=31536000; includeSubDomains; preload"
    cookie = headers["set-cookie"]
    assert cookie.startswith("__Host-csrftoken=")
    assert "Secure" in cookie
    assert "SameSite=Lax" in cookie
    status, headers = answers["plain"]
    assert (status, headers["location"]) == (301, f"https://{HOST}/admin/login/")
    assert "strict-transport-security" not in headers
    assert answers["agent"][0] == 401
    assert "strict-transport-security" in answers["agent"][1]
    assert answers["agent over http"][0] == 403
    assert answers["other host"][0] == 400
