"""Who a child's request is from, in both presentations of its key."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.test import RequestFactory
from rest_framework.request import Request
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api import authentication
from api.authentication import (
    EvenClock,
    authenticate,
    check_body,
    client_address,
    private,
    request_parts,
    scope_parts,
)
from api.guesses import Guesses, place
from nodes import keys, registry, signing
from nodes.keys import Caller, IssuedKey
from nodes.models import AccessKey, Nonce
from nodes.protocol import Forbidden, TooMany, Unauthenticated

pytestmark = pytest.mark.django_db

NOW = 1_795_262_400.0
URL = "https://127.0.0.1:8000/api/v1/agent/beat"
BODY = b'{"held": []}'
SHA = hashlib.sha256(BODY).digest()


@pytest.fixture(autouse=True)
def _fresh_guesses() -> Iterator[None]:
    authentication.guesses.forget()
    yield
    authentication.guesses.forget()


@pytest.fixture
def key() -> IssuedKey:
    return registry.add_node("alpha")[1]


def signed(key: IssuedKey, url: str = URL, created: float = NOW, body: bytes = BODY, **more) -> list[tuple[str, str]]:
    keys = {"access_key": key.access_key, "secret_key": key.secret_key}
    return list(signing.sign("POST", url, body, created=int(created), **(keys | more)).items())


def plain(access_key: str, secret_key: str) -> list[tuple[str, str]]:
    return [("Authorization", f"AK-SK {access_key}:{secret_key}")]


def ask(headers: list[tuple[str, str]], now: float = NOW, client: str = "192.0.2.1", **more) -> Caller:
    return authenticate("POST", URL, headers, more.get("sha", SHA), now=now, client=client)


# Both presentations


@pytest.mark.parametrize("present", [signed, lambda key: plain(key.access_key, key.secret_key)])
def test_a_child_is_known_by_its_key(key, present):
    caller = ask(present(key))
    row = AccessKey.objects.get()
    assert (caller.node_id, caller.key_id, caller.access_key) == (key.node.pk, row.pk, key.access_key)
    assert row.last_used_at == dt.datetime.fromtimestamp(NOW, tz=dt.UTC)


def test_a_child_may_use_either_of_its_two_keys(key):
    second = keys.rotate(key.node.pk)
    assert ask(signed(key)).access_key == key.access_key
    assert ask(signed(second)).access_key == second.access_key


def test_the_last_use_is_written_once_a_minute_at_most(key):
    for seconds, written in [(0, 0), (30, 0), (60, 0), (61, 61)]:
        ask(plain(key.access_key, key.secret_key), now=NOW + seconds)
        assert AccessKey.objects.get().last_used_at == dt.datetime.fromtimestamp(NOW + written, tz=dt.UTC)


def test_a_request_without_a_key_is_told_how_to_send_one():
    for headers in ([], [("Authorization", "Bearer abc")], [("Authorization", "")]):
        with pytest.raises(Unauthenticated, match="AK-SK"):
            ask(headers)


def test_a_name_of_the_scheme_in_small_letters_will_do(key):
    assert ask([("authorization", f"ak-sk {key.access_key}:{key.secret_key}")]).access_key == key.access_key


# What is refused


@pytest.mark.parametrize("present", [signed, lambda key: plain(key.access_key, key.secret_key)])
@pytest.mark.parametrize("ended", [lambda key: keys.revoke(key.access_key), lambda key: keys.revoke_all(key.node.pk)])
def test_a_revoked_key_is_refused_at_once_like_an_unknown_one(key, present, ended):
    ask(present(key))
    ended(key)
    with pytest.raises(Unauthenticated) as raised:
        ask(present(key))
    assert str(raised.value) == authentication.WRONG


@pytest.mark.parametrize("present", [signed, lambda key: plain(key.access_key, key.secret_key)])
def test_a_node_that_is_not_active_is_refused(key, present):
    registry.update_node(key.node.pk, active=False)
    with pytest.raises(Unauthenticated, match="not active"):
        ask(present(key))


@pytest.mark.parametrize("secret", ["", "CS", "x" * 10_000, "CS" + "A" * 43, "é\x00"])
def test_a_wrong_secret_and_an_unknown_key_get_the_same_answer(key, secret):
    answers = set()
    for access_key in (key.access_key, "CN" + "0" * 32, "", "x" * 10_000, "a\x00b"):
        with pytest.raises(Unauthenticated) as raised:
            ask(plain(access_key, secret), client="")
        answers.add(str(raised.value))
        assert type(raised.value) is Unauthenticated
    assert answers == {authentication.WRONG}


def test_the_secret_of_another_node_does_not_help(key):
    _, other = registry.add_node("beta")
    with pytest.raises(Unauthenticated):
        ask(plain(key.access_key, other.secret_key))
    with pytest.raises(Unauthenticated):
        ask(signed(key, secret_key=other.secret_key))


def test_plain_keys_can_be_switched_off_for_a_node_and_for_all(key, settings):
    registry.update_node(key.node.pk, allow_plain_key=False)
    with pytest.raises(Forbidden, match="alpha"):
        ask(plain(key.access_key, key.secret_key))
    registry.update_node(key.node.pk, allow_plain_key=True)
    settings.CASCADE = settings.CASCADE.model_copy(update={"allow_plain_keys": False})
    with pytest.raises(Forbidden, match="this server"):
        ask(plain(key.access_key, key.secret_key))
    assert ask(signed(key)).access_key == key.access_key


def test_whether_plain_keys_are_switched_off_is_told_to_nobody_without_the_secret(key):
    registry.update_node(key.node.pk, allow_plain_key=False)
    with pytest.raises(Unauthenticated, match=authentication.WRONG):
        ask(plain(key.access_key, "CS" + "A" * 43))


def test_a_signature_that_does_not_fit_is_not_saved_by_a_plain_key_beside_it(key):
    headers = [*signed(key, created=NOW - 1000), *plain(key.access_key, key.secret_key)]
    with pytest.raises(Unauthenticated):
        ask(headers)


def test_no_secret_is_logged(key, caplog):
    caplog.set_level(logging.DEBUG)
    ask(plain(key.access_key, key.secret_key))
    with pytest.raises(Unauthenticated):
        ask(plain("CNnone", key.secret_key))
    assert key.secret_key[2:] not in caplog.text


# Replay, change, time


def test_a_signed_request_is_accepted_once(key):
    headers = signed(key)
    ask(headers)
    with pytest.raises(Unauthenticated, match="replayed"):
        ask(headers, now=NOW + 100)
    assert Nonce.objects.count() == 1


def test_the_same_nonce_of_two_keys_is_no_replay(key):
    other = keys.issue(key.node.pk)
    for each in (key, other):
        ask(signed(each, nonce="the-same-for-both"))
    assert Nonce.objects.count() == 2


def test_a_nonce_is_kept_as_long_as_its_signature_could_be_accepted(key, settings):
    window = settings.CASCADE.signature_seconds
    headers = signed(key, created=NOW + window)
    ask(headers)
    last = NOW + 2 * window
    registry.prune(dt.datetime.fromtimestamp(last, tz=dt.UTC))
    with pytest.raises(Unauthenticated, match="replayed"):
        ask(headers, now=last)


def test_what_was_signed_before_the_clock_was_set_back_is_refused_because_its_nonce_may_be_forgotten(key, monkeypatch):
    """The clock is a day ahead for a while, nonces are pruned, the clock is set right: the capture is not new again."""
    wall, steady = [NOW - 60.0], [0.0]
    monkeypatch.setattr(authentication, "clock", EvenClock(lambda: wall[0], lambda: steady[0]))
    wall[0], steady[0] = NOW, 60.0
    captured = signed(key, created=NOW)

    def send(headers: list[tuple[str, str]]) -> Caller:
        return authenticate("POST", URL, headers, SHA, client="192.0.2.1")

    send(captured)
    wall[0] += 86_400
    send(signed(key, created=wall[0]))
    wall[0] += 3600
    registry.prune(dt.datetime.fromtimestamp(wall[0], tz=dt.UTC))
    assert not Nonce.objects.exists()
    wall[0], steady[0] = NOW + 30, 90.0
    with pytest.raises(signing.ClockError):
        send(captured)
    assert send(signed(key, created=NOW + 30)).access_key == key.access_key


def test_a_new_process_takes_nothing_signed_before_it_since_the_window_may_have_been_shorter(
    key, settings, monkeypatch
):
    settings.CASCADE = settings.CASCADE.model_copy(update={"signature_seconds": 5})
    captured = signed(key)
    ask(captured)
    registry.prune(dt.datetime.fromtimestamp(NOW + 20, tz=dt.UTC))
    settings.CASCADE = settings.CASCADE.model_copy(update={"signature_seconds": 300})
    assert not Nonce.objects.exists()
    monkeypatch.setattr(authentication, "clock", EvenClock(lambda: NOW + 20.0, lambda: 0.0))
    with pytest.raises(signing.ClockError, match="allowed are 5 s"):
        authenticate("POST", URL, captured, SHA)


def test_a_clock_that_is_only_trimmed_costs_nobody_anything():
    wall, steady = [NOW], [0.0]
    clock = EvenClock(lambda: wall[0], lambda: steady[0])
    for second in range(1, 3600):
        steady[0] = second
        wall[0] = NOW + second * 0.9995  # 1.8 s an hour
        assert clock.look() == (wall[0], NOW - authentication.START_SECONDS)


@pytest.mark.django_db(transaction=True)
def test_of_many_copies_sent_at_the_same_time_one_is_accepted():
    _, key = registry.add_node("alpha")
    headers = signed(key)

    def send() -> bool:
        try:
            ask(headers)
        except Unauthenticated:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(send) for _ in range(16)]
        assert sum(each.result() for each in accepted) == 1


def test_a_changed_body_is_refused_and_its_nonce_not_used_up(key):
    headers = signed(key)
    with pytest.raises(Unauthenticated, match="body"):
        ask(headers, sha=hashlib.sha256(b"other").digest())
    assert not Nonce.objects.exists()
    assert ask(headers).access_key == key.access_key


def test_a_body_read_later_is_checked_later(key):
    caller = ask(signed(key), sha=None)
    check_body(caller, SHA)
    with pytest.raises(Unauthenticated, match="body"):
        check_body(caller, hashlib.sha256(b"other").digest())
    check_body(ask(plain(key.access_key, key.secret_key), sha=None), SHA)


@pytest.mark.parametrize("offset", [-600, 600])
def test_a_child_whose_clock_is_wrong_is_told_the_time_and_goes_on(key, offset):
    wrong = NOW + offset
    with pytest.raises(signing.ClockError) as raised:
        ask(signed(key, created=wrong))
    learned = float(raised.value.as_dict()["time"]) - wrong
    assert ask(signed(key, created=wrong + learned)).access_key == key.access_key


# Guessing


def test_guessing_plain_keys_is_throttled_by_access_key(key):
    for number in range(20):
        with pytest.raises(Unauthenticated):
            ask(plain(key.access_key, f"CS{number}"), client=f"192.0.2.{number}")
    with pytest.raises(TooMany) as raised:
        ask(plain(key.access_key, key.secret_key), client="192.0.2.99")
    assert raised.value.status == 429
    assert 0 < raised.value.retry_after <= 60


def test_guessing_plain_keys_is_throttled_by_address(key):
    for number in range(20):
        with pytest.raises(Unauthenticated):
            ask(plain(f"CN{number}", "CSx"))
    with pytest.raises(TooMany):
        ask(plain("CN99", "CSx"))
    with pytest.raises(Unauthenticated):
        ask(plain("CN99", "CSx"), client="192.0.2.2")


def test_forged_signatures_are_throttled(key):
    _, other = registry.add_node("beta")
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            ask(signed(key, secret_key=other.secret_key))
    with pytest.raises(TooMany):
        ask(signed(key, secret_key=other.secret_key))


def test_a_stranger_cannot_lock_a_node_out(key):
    ask(plain(key.access_key, key.secret_key), client="192.0.2.7")
    for number in range(20):
        with pytest.raises(Unauthenticated):
            ask(plain(key.access_key, f"CS{number}"), client="203.0.113.1")
    with pytest.raises(TooMany):
        ask(plain(key.access_key, "CSx"), client="203.0.113.1")
    assert ask(signed(key), client="203.0.113.1").access_key == key.access_key
    assert ask(plain(key.access_key, key.secret_key), client="192.0.2.7").access_key == key.access_key


def test_a_replay_and_a_wrong_clock_are_no_guesses(key):
    headers = signed(key)
    ask(headers)
    for _ in range(25):
        with pytest.raises(Unauthenticated, match="replayed"):
            ask(headers)
        with pytest.raises(signing.ClockError):
            ask(signed(key, created=NOW - 1000))


def test_after_a_minute_guesses_are_free_again_and_forgotten_ones_cost_no_memory():
    now = [0.0]
    guesses = Guesses(limit=2, seconds=60, clock=lambda: now[0])
    for _ in range(2):
        guesses.check(["client a"])
        guesses.wrong(["client a"])
    with pytest.raises(TooMany, match="60 s"):
        guesses.check(["client a"])
    now[0] = 61
    guesses.check(["client a"])
    for number in range(Guesses.ENTRIES + 100):
        guesses.wrong([f"client {number}"])
        guesses.right(str(number), "CN")
    assert len(guesses._wrong) == len(guesses._known) == Guesses.ENTRIES
    assert guesses.knows(str(Guesses.ENTRIES), "CN")
    now[0] += Guesses.KNOWN_SECONDS
    assert not guesses.knows(str(Guesses.ENTRIES), "CN")


def test_a_burst_of_tries_cannot_pass_before_the_first_is_judged():
    guesses = Guesses(limit=2)
    for _ in range(2):
        guesses.attempt(["user a"])
    with pytest.raises(TooMany):
        guesses.attempt(["user a"])
    guesses.forgive(["user a"])
    guesses.attempt(["user a"])


def test_all_addresses_of_one_machine_are_one_place():
    assert place("2001:db8::1") == place("2001:db8::ffff:0:1") != place("2001:db8:0:1::1")
    assert place("::ffff:192.0.2.1") == place("192.0.2.1") != place("192.0.2.2")
    assert place("") == []


# Where from, and who could read it


@pytest.mark.parametrize(
    ("url", "fields", "client", "https", "allowed"),
    [
        (URL, {}, "192.0.2.1", False, True),
        ("wss://parent/ws/agent", {}, "192.0.2.1", False, True),
        ("http://parent/", {}, "192.0.2.1", False, False),
        ("http://127.0.0.1/", {}, "192.0.2.1", False, False),  # a Host header is anybody's to write
        ("http://localhost/", {}, "", False, False),
        ("http://parent/", {}, "127.0.0.1", False, True),
        ("http://parent/", {}, "::1", False, True),
        ("http://parent/", {}, "::ffff:127.0.0.1", False, True),
        # Through a proxy on this machine, from wherever.
        ("http://parent/", {"x-forwarded-for": "127.0.0.1"}, "127.0.0.1", False, False),
        ("http://parent/", {"forwarded": "for=127.0.0.1"}, "127.0.0.1", False, False),
        ("http://parent/", {"via": "1.1 proxy"}, "127.0.0.1", False, False),
        # What says that there was TLS counts only where there is a proxy that says so.
        ("http://parent/", {"x-forwarded-proto": "https"}, "192.0.2.1", False, False),
        ("http://parent/", {"x-forwarded-proto": "https"}, "192.0.2.1", True, True),
        ("http://parent/", {"x-forwarded-proto": "http"}, "192.0.2.1", True, False),
        ("http://parent/", {"x-forwarded-proto": "http, https"}, "192.0.2.1", True, False),
    ],
)
def test_a_plain_key_passes_over_tls_or_from_this_machine_only(key, settings, url, fields, client, https, allowed):
    settings.CASCADE = settings.CASCADE.model_copy(update={"https": https})
    assert private(url, fields, client) is allowed
    headers = [*fields.items(), *plain(key.access_key, key.secret_key)]
    if allowed:
        assert authenticate("GET", url, headers, SHA, now=NOW, client=client).access_key == key.access_key
        return
    with pytest.raises(Forbidden, match="others can read"):
        authenticate("GET", url, headers, SHA, now=NOW, client=client)
    assert AccessKey.objects.get().last_used_at is None
    settings.CASCADE = settings.CASCADE.model_copy(update={"plain_keys_unencrypted": True})
    assert authenticate("GET", url, headers, SHA, now=NOW, client=client).access_key == key.access_key


def test_a_key_that_travelled_readable_is_named_in_the_log_but_for_its_secret(key, caplog):
    with pytest.raises(Forbidden):
        authenticate("GET", "http://parent/", plain(key.access_key, key.secret_key), SHA, now=NOW, client="192.0.2.1")
    assert key.access_key in caplog.text
    assert key.secret_key not in caplog.text


def test_a_wrong_secret_is_told_nothing_of_how_it_came(key):
    with pytest.raises(Unauthenticated, match=authentication.WRONG):
        authenticate("GET", "http://parent/", plain(key.access_key, "CSx"), SHA, now=NOW, client="192.0.2.1")


@pytest.mark.parametrize(
    ("https", "forwarded", "client"),
    [
        (False, [b"203.0.113.9"], "192.0.2.1"),
        (True, [], "192.0.2.1"),
        (True, [b"203.0.113.9"], "203.0.113.9"),
        (True, [b"127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        (True, [b"127.0.0.1", b"203.0.113.9"], "203.0.113.9"),
        (True, [b""], "192.0.2.1"),
    ],
)
def test_behind_tls_a_client_is_who_the_proxy_says_and_else_who_connects(settings, https, forwarded, client):
    settings.CASCADE = settings.CASCADE.model_copy(update={"https": https})
    headers = [(b"host", b"parent"), *((b"x-forwarded-for", each) for each in forwarded)]
    assert client_address(scope(headers=headers)) == client
    assert client_address(ASGIRequest(scope(headers=headers), io.BytesIO())) == client


# The request as it came


def scope(**more) -> dict:
    return {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/a b/é",
        "raw_path": b"/a%20b/%C3%A9",
        "query_string": b"q=1%202",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"X-One", b"1")],
        "client": ["192.0.2.1", 4711],
        "server": ["127.0.0.1", 8000],
        **more,
    }


def test_the_address_is_taken_as_it_was_on_the_wire():
    expected = ("POST", "http://127.0.0.1:8000/a%20b/%C3%A9?q=1%202")
    assert scope_parts(scope())[:2] == expected
    assert scope_parts(scope(raw_path=None))[:2] == expected
    assert scope_parts(scope())[2] == [("host", "127.0.0.1:8000"), ("x-one", "1")]
    request = ASGIRequest(scope(), io.BytesIO())
    assert request_parts(request)[:2] == request_parts(Request(request))[:2] == expected
    assert client_address(request) == client_address(Request(request)) == client_address(scope()) == "192.0.2.1"


def test_a_request_of_another_kind_of_server_reads_alike():
    request = RequestFactory().post("/a%20b?q=1", headers={"host": "127.0.0.1:8000", "signature": "x"})
    method, url, headers = request_parts(request)
    assert (method, url) == ("POST", "http://127.0.0.1:8000/a%20b?q=1")
    assert dict(headers)["Signature"] == "x"


def test_a_websocket_without_a_method_is_a_get():
    upgrade = scope(type="websocket", scheme="ws")
    del upgrade["method"]
    assert scope_parts(upgrade)[:2] == ("GET", "ws://127.0.0.1:8000/a%20b/%C3%A9?q=1%202")


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"a", b"b"],
        [b""],
        [b"parent/claim#"],
        [b"parent/claim?"],
        [b"user@parent"],
        [b"a b"],
        [b"parent:1:2"],
        [b"\xff"],
    ],
)
def test_a_host_that_could_shift_the_path_or_mean_two_is_refused(hosts):
    with pytest.raises(Unauthenticated, match="Host"):
        scope_parts(scope(headers=[(b"host", host) for host in hosts]))


def test_a_signature_does_not_cover_another_path_by_way_of_the_host(key):
    headers = [(name.lower().encode(), value.encode()) for name, value in signed(key, "http://parent/claim", body=b"")]
    shifted = scope(headers=[*headers, (b"host", b"parent/claim#")], raw_path=b"/release", query_string=b"")
    with pytest.raises(Unauthenticated):
        authenticate(*scope_parts(shifted), hashlib.sha256(b"").digest(), now=NOW)


def test_what_follows_a_hash_sign_in_the_query_cannot_be_smuggled_in(key):
    headers = [(name.lower().encode(), value.encode()) for name, value in signed(key, "http://parent/x?a=1", body=b"")]
    longer = scope(headers=[*headers, (b"host", b"parent")], raw_path=b"/x", query_string=b"a=1#&b=2")
    with pytest.raises(Unauthenticated):
        authenticate(*scope_parts(longer), hashlib.sha256(b"").digest(), now=NOW)


# Through a real server


async def verifying(scope, receive, send) -> None:
    """The server of the test below: says whose signature it is, of HTTP requests and WebSocket upgrades."""
    try:
        method, url, headers = scope_parts(scope)
        find = {os.environ["TEST_ACCESS_KEY"]: os.environ["TEST_PUBLIC_KEY"]}.__getitem__
        signing.verify(method, url, headers, find_public_key=find, now=time.time(), max_age=60)
        good = True
    except Unauthenticated:
        good = False
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept" if good else "websocket.close"})
    else:
        await send({"type": "http.response.start", "status": 200 if good else 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str, str]]:
    """(host:port, access key, secret key) of a real server that verifies signatures."""
    access_key, secret_key, public_key = signing.new_key()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"TEST_ACCESS_KEY": access_key, "TEST_PUBLIC_KEY": public_key}
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "cascade.settings", **own}
    # Django has to be set up before this module can be read.
    start = (
        "import sys, django; django.setup(); from daphne.cli import CommandLineInterface as C; "
        f"C().run(['-b', '127.0.0.1', '-p', '{port}', '{__name__}:verifying'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}", access_key, secret_key
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    "target", ["/", "/a%20b/c%2Fd?x=%C3%A9&y=a+b", "/a?", "/a;b=1,2/(c)?q=/?:@", "/x//y/../z?a=1&a=2&empty="]
)
def test_a_request_signed_here_verifies_on_the_far_side_of_a_real_server(server, target):
    host, access_key, secret_key = server
    request = requests.Request("POST", f"http://{host}{target}", data=b"body").prepare()
    request.headers.update(
        signing.sign("POST", request.url, b"body", access_key=access_key, secret_key=secret_key)  # type: ignore[arg-type]
    )
    with requests.Session() as session:
        session.trust_env = False
        assert session.send(request, timeout=20).status_code == 200
        request.url += "&more=1" if "?" in request.url else "?more=1"  # type: ignore[operator]
        assert session.send(request, timeout=20).status_code == 401


def test_a_websocket_upgrade_signed_here_verifies_on_the_far_side_of_a_real_server(server):
    host, access_key, secret_key = server
    url = f"ws://{host}/ws/agent?boot=b%201"
    headers = signing.sign("GET", url, access_key=access_key, secret_key=secret_key)
    with connect(url, additional_headers=headers, proxy=None, open_timeout=20):
        pass
    with (
        pytest.raises(InvalidStatus),
        connect(f"{url}2", additional_headers=headers, proxy=None, open_timeout=20),
    ):
        pass
