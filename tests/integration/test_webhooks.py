"""Webhooks: a run's end is told to its task's address, signed, and told again until it is heard."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from django.utils import timezone

from dispatch import lifecycle, schedule, synclog, webhooks
from dispatch.models import Delivery, Run, Source, SyncLog, Task
from nodes import surroundings
from nodes.protocol import FieldError, NotFound
from nodes.surroundings import Surroundings
from nodes.transactions import write
from tests.integration.factory import Clock, assert_partition, child, dispatch, done, partly, save, saver

pytestmark = pytest.mark.django_db
SECRET = "between us two"


class Call(NamedTuple):
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class Receiver:
    """A server that answers with ``statuses`` one after the other, and 200 from then on."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.hold: threading.Event | None = None
        self.heard = threading.Semaphore(0)
        outer = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.calls.append(Call(self.path, {name.lower(): text for name, text in self.headers.items()}, body))
                outer.heard.release()
                if outer.hold is not None:
                    outer.hold.wait(20)
                self.send_response(outer.statuses.pop(0) if outer.statuses else 200)
                for name, text in outer.headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=t0k3n"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    if made.hold is not None:
        made.hold.set()
    made.server.shutdown()
    made.server.server_close()


def ended(url: str, **fields: Any) -> Run:
    """A run of two items, cancelled: its end is told like any other."""
    task = Task(**{"name": "nightly", "type": "echo", "items": ["a", "b"], "webhook_url": url, **fields})
    schedule.store(task)
    return lifecycle.cancel(lifecycle.submit_task(task).pk)


def send_due() -> int:
    """What the loop would send now; how many calls."""
    claimed = webhooks.claim(timezone.now(), 100)
    for delivery in claimed:
        webhooks.send(delivery)
    return len(claimed)


def waits(delivery: Delivery) -> float:
    """Seconds until the next try."""
    delivery.refresh_from_db()
    return (delivery.next_at - timezone.now()).total_seconds()


# What is sent


def test_the_end_of_a_run_is_told_as_json(receiver: Receiver) -> None:
    run = ended(receiver.url)
    assert send_due() == 1
    (call,) = receiver.calls
    assert (call.path, call.headers["content-type"]) == ("/hook?token=t0k3n", "application/json")
    told = json.loads(call.body)
    assert (told["event"], told["run"]["id"], told["run"]["state"]) == ("run.ended", run.pk, "cancelled")
    assert (told["task"]["name"], told["counts"]["cancelled"]) == ("nightly", 2)
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.status, delivery.attempts, delivery.error) == ("delivered", 200, 1, "")
    assert str(delivery.pk) == call.headers["x-cascade-delivery"] == str(told["delivery"])
    assert send_due() == 0


def test_a_task_without_an_address_and_a_run_without_a_task_tell_nobody() -> None:
    ended("")
    lifecycle.cancel(lifecycle.submit(type="echo", items=["a"]).pk)
    assert not Delivery.objects.exists()


def test_a_receiver_verifies_the_signature_by_the_documented_recipe(receiver: Receiver) -> None:
    ended(receiver.url, webhook_secret=SECRET)
    send_due()
    (call,) = receiver.calls
    signed = f"{call.headers['x-cascade-timestamp']}.{call.headers['x-cascade-delivery']}.".encode() + call.body
    expected = "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert call.headers["x-cascade-signature"] == expected
    assert abs(int(call.headers["x-cascade-timestamp"]) - timezone.now().timestamp()) < 60


def test_without_a_secret_nothing_is_signed(receiver: Receiver) -> None:
    ended(receiver.url)
    send_due()
    assert "x-cascade-signature" not in receiver.calls[0].headers


def test_headers_of_the_task_are_sent_and_ours_stay(receiver: Receiver) -> None:
    ended(receiver.url, webhook_headers={"Authorization": "Bearer x", "content-type": "text/markdown"})
    send_due()
    headers = receiver.calls[0].headers
    assert (headers["authorization"], headers["content-type"]) == ("Bearer x", "text/markdown")


def test_a_template_says_how_many_rows_each_source_brought(receiver: Receiver, folder: Any) -> None:
    for key in "abc":
        Source.objects.create(kind="feed", key=key, name=f"Feed {key.upper()}")
    template = (
        "{{ run.state }}: {{ counts.rows }} new, {{ counts.failed }} failed\n"
        "{% for item in items %}{{ item.name }} {{ item.state }} {{ item.rows }}\n{% endfor %}"
        "{% for item in failed_items %}{{ item.key }}: {{ item.error }}{% endfor %}"
    )
    task = Task(name="feeds", type="echo", source_kind="feed", shard_size=1, max_attempts=1)
    task.webhook_url, task.webhook_template = receiver.url, template
    schedule.store(task)
    node = child(capacity=3)
    run = lifecycle.submit_task(task)
    dispatch()
    for work in node.claim():
        entry = partly(work, work.start) if work.items == ["c"] else done(work, count=2 + work.start)
        node.report(entry)
    assert send_due() == 0  # reported is not saved
    with saver() as made:
        save(made)
    assert_partition(run)
    assert send_due() == 1
    assert receiver.calls[0].headers["content-type"] == "text/plain; charset=utf-8"
    assert receiver.calls[0].body.decode().splitlines() == [
        "partial: 5 new, 1 failed",
        "Feed A saved 2",
        "Feed B saved 3",
        "Feed C failed 0",
        "c: no luck with c",
    ]


def test_a_template_of_json_stays_json_whatever_the_names(receiver: Receiver) -> None:
    ended(receiver.url, name='a "quoted" <name> & more', webhook_template='{"text": {{ task.name|json }}}')
    send_due()
    assert json.loads(receiver.calls[0].body) == {"text": 'a "quoted" <name> & more'}
    assert receiver.calls[0].headers["content-type"] == "application/json"


# Until it is heard


def test_an_error_of_the_receiver_is_tried_again_later_with_the_same_id(receiver: Receiver, clock: Clock) -> None:
    receiver.statuses = [500, 503]
    ended(receiver.url)
    delivery = Delivery.objects.get()
    gaps = []
    for _ in range(2):
        assert send_due() == 1
        gaps.append(waits(delivery))
        assert delivery.state == "waiting"
        assert send_due() == 0
        clock.forward(gaps[-1] + 1)
    assert 0 < gaps[0] <= webhooks.FIRST_BACKOFF < gaps[1] * 2 <= webhooks.FIRST_BACKOFF * 4
    assert send_due() == 1
    delivery.refresh_from_db()
    assert (delivery.state, delivery.attempts, delivery.status) == ("delivered", 3, 200)
    assert len({call.headers["x-cascade-delivery"] for call in receiver.calls}) == 1


def test_it_is_given_up_after_the_tries_that_the_settings_allow(
    receiver: Receiver, clock: Clock, settings: Any
) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"webhook_attempts": 2})
    receiver.statuses = [500] * 9
    ended(receiver.url)
    for _ in range(5):
        send_due()
        clock.forward(7200)
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.error, len(receiver.calls)) == ("failed", 2, "answered 500", 2)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301, 302, 307])
def test_a_no_and_a_redirect_are_final(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    receiver.headers = {"Location": "/elsewhere"}
    ended(receiver.url)
    send_due()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.status, len(receiver.calls)) == ("failed", status, 1)
    assert str(status) in delivery.error


@pytest.mark.parametrize("status", [408, 429])
def test_too_many_is_tried_again_when_the_receiver_says(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    receiver.headers = {"Retry-After": "120"}
    ended(receiver.url)
    send_due()
    delivery = Delivery.objects.get()
    assert 110 < waits(delivery) <= 120
    assert delivery.state == "waiting"


def test_a_receiver_that_does_not_answer_is_tried_again(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "ANSWER_SECONDS", 0.1)
    receiver.hold = threading.Event()
    ended(receiver.url)
    send_due()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.status, delivery.error) == ("waiting", None, "no answer within 0.1 s")


def test_nobody_there_is_tried_again_and_the_record_holds_no_token(caplog: pytest.LogCaptureFixture) -> None:
    synclog.flush(now=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ended(f"http://127.0.0.1:{taken.getsockname()[1]}/hook?token=t0k3n", webhook_secret=SECRET)
        send_due()
    synclog.flush(now=True)
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.error) == ("waiting", "no connection: Connection refused")
    assert SyncLog.objects.filter(operation="webhook", error__contains="Connection refused").exists()
    assert "t0k3n" not in caplog.text


def test_a_receiver_in_a_network_that_is_not_public_is_called_only_where_the_setting_allows_it(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    before = surroundings.current()
    surroundings.settle(Surroundings())
    try:
        ended(receiver.url)
        ended(receiver.url.replace("127.0.0.1", "localhost"), name="by name")
        send_due()
    finally:
        surroundings.settle(before)
    assert receiver.calls == []
    for delivery in Delivery.objects.all():
        assert (delivery.state, delivery.attempts, delivery.status) == ("failed", 1, None)
        assert delivery.error.startswith("not called: ")
        assert "is not a public address, and not in the setting allowed_networks" in delivery.error
        assert "t0k3n" not in delivery.error + caplog.text
        webhooks.retry(delivery.pk)
    send_due()
    assert [delivery.state for delivery in Delivery.objects.all()] == ["delivered", "delivered"]


def test_the_log_holds_neither_token_nor_secret(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.statuses = [500, 400]
    ended(receiver.url, webhook_secret=SECRET)
    for _ in range(2):
        send_due()
        webhooks.retry(Delivery.objects.get().pk)
    assert len(receiver.calls) == 2
    assert "t0k3n" not in caplog.text
    assert SECRET not in caplog.text


def test_a_task_that_is_gone_ends_its_calls(receiver: Receiver) -> None:
    ended(receiver.url)
    Task.objects.all().delete()
    send_due()
    assert (Delivery.objects.get().state, receiver.calls) == ("failed", [])


# Never lost, never two at a time


def test_a_crash_in_the_middle_of_a_call_makes_it_again(receiver: Receiver, clock: Clock) -> None:
    ended(receiver.url)
    assert len(webhooks.claim(timezone.now(), 10)) == 1  # and then the parent died
    assert send_due() == 0
    clock.forward(webhooks.LEASE_SECONDS + 1)
    assert send_due() == 1
    assert Delivery.objects.get().state == "delivered"


def test_two_processes_do_not_take_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ended("http://127.0.0.1:9/")
    now = timezone.now()
    first: list[Delivery] = []

    @contextmanager
    def overtaken() -> Iterator[None]:
        monkeypatch.setattr(webhooks, "write", write)
        first.extend(webhooks.claim(now, 10))  # after the other has read, before it takes
        with write():
            yield

    monkeypatch.setattr(webhooks, "write", overtaken)
    assert webhooks.claim(now, 10) == []
    assert len(first) == 1


def test_a_run_that_is_tried_again_is_told_again_under_a_new_id(receiver: Receiver, folder: Any) -> None:
    task = Task(name="feeds", type="echo", items=["a"], shard_size=1, max_attempts=1, webhook_url=receiver.url)
    schedule.store(task)
    node = child()
    run = lifecycle.submit_task(task)
    for _ in range(2):
        for work in node.works():
            node.report(partly(work, work.start))
        assert send_due() == 1
        lifecycle.retry(run.pk)
    assert len({call.headers["x-cascade-delivery"] for call in receiver.calls}) == 2


def test_a_call_that_waits_is_dropped_when_its_run_goes_on(receiver: Receiver, folder: Any) -> None:
    task = Task(name="feeds", type="echo", items=["a"], shard_size=1, max_attempts=1, webhook_url=receiver.url)
    schedule.store(task)
    node = child()
    run = lifecycle.submit_task(task)
    for work in node.works():
        node.report(partly(work, work.start))
    lifecycle.retry(run.pk)
    assert send_due() == 0


def test_an_operator_may_ask_for_the_call_again(receiver: Receiver) -> None:
    receiver.statuses = [400]
    ended(receiver.url)
    send_due()
    webhooks.retry(Delivery.objects.get().pk)
    send_due()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.error) == ("delivered", 1, "")
    with pytest.raises(NotFound):
        webhooks.retry(10**9)


@pytest.mark.django_db(transaction=True)
def test_the_loop_sends_while_one_receiver_is_slow(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.05)
    slow = Receiver()
    slow.hold = threading.Event()
    loop = webhooks.Webhooks()
    loop.start()
    try:
        ended(slow.url, name="slow")
        assert slow.heard.acquire(timeout=10)
        ended(receiver.url, name="quick")
        assert receiver.heard.acquire(timeout=10)
    finally:
        slow.hold.set()
        loop.stop()
        for _ in range(webhooks.MOST_AT_ONCE):
            assert loop._free.acquire(timeout=10)  # no call is left that would write into the next test
        slow.server.shutdown()
        slow.server.server_close()
    assert {delivery.state for delivery in Delivery.objects.all()} == {"delivered"}


# What may be saved


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"webhook_url": "ftp://example.org/"}, "webhook_url", "http and https are allowed"),
        ({"webhook_url": "example.org/hook"}, "webhook_url", "http and https are allowed"),
        ({"webhook_url": "http://"}, "webhook_url", "http and https are allowed"),
        ({"webhook_url": "http://[::1"}, "webhook_url", "is not an address"),
        ({"webhook_url": "http://a:99999/"}, "webhook_url", "is not an address"),
        ({"webhook_url": "http://a/b c"}, "webhook_url", "spaces"),
        ({"webhook_url": "http://a/\r\nX: y"}, "webhook_url", "spaces"),
        ({"webhook_url": "http://me:pass@a/"}, "webhook_url", "user name or password"),
        ({"webhook_url": "http://a/" + "x" * 500}, "webhook_url", "at most 500"),
        ({"webhook_headers": []}, "webhook_headers", "not an object"),
        ({"webhook_headers": {"A b": "c"}}, "webhook_headers", "not the name of a header"),
        ({"webhook_headers": {"A": "b\r\nC: d"}}, "webhook_headers.A", "no header may have"),
        ({"webhook_headers": {"A": 5}}, "webhook_headers.A", "not a text"),
        ({"webhook_headers": {"Host": "a"}}, "webhook_headers.Host", "set by this server"),
        (
            {"webhook_headers": {"X-Cascade-Signature": "a"}},
            "webhook_headers.X-Cascade-Signature",
            "set by this server",
        ),
        ({"webhook_secret": "x" * 201}, "webhook_secret", "at most 200"),
        ({"webhook_template": "{% if %}"}, "webhook_template", "if"),
        ({"webhook_template": "{{ run.name|nosuch }}"}, "webhook_template", "nosuch"),
        ({"webhook_template": "{% load static %}"}, "webhook_template", "load"),
        ({"webhook_template": "{% include '/etc/passwd' %}"}, "webhook_template", "include"),
        ({"webhook_template": "{% extends 'base.html' %}"}, "webhook_template", "extends"),
        ({"webhook_template": "{% debug %}"}, "webhook_template", "debug"),
        ({"webhook_template": "{% url 'admin:index' %}"}, "webhook_template", "url"),
        ({"webhook_template": "{{ run.name|center:'999999999' }}"}, "webhook_template", "center"),
        ({"webhook_template": "{{ 1|stringformat:'999999999d' }}"}, "webhook_template", "stringformat"),
        ({"webhook_template": "{{ 1|floatformat:999999999 }}"}, "webhook_template", "floatformat"),
        ({"webhook_template": "x" * 20_001}, "webhook_template", "at most 20000"),
    ],
)
def test_what_could_never_be_sent_is_refused(given: dict[str, Any], field: str, said: str) -> None:
    from dispatch import webhook_bodies

    with pytest.raises(FieldError) as refused:
        webhook_bodies.check(given)
    assert refused.value.field == field
    assert said in refused.value.message


def test_a_template_sees_nothing_but_what_it_is_given(receiver: Receiver) -> None:
    ended(
        receiver.url, webhook_template="{{ task.webhook_secret }}{{ settings.SECRET_KEY }}{{ run.task }}{{ request }}."
    )
    send_due()
    assert receiver.calls[0].body == b"."


def test_the_longest_wait_is_bounded() -> None:
    assert webhooks._backoff(40) <= webhooks.LONGEST_BACKOFF
    assert dt.timedelta(seconds=webhooks.LEASE_SECONDS) > dt.timedelta(
        seconds=webhooks.CONNECT_SECONDS + webhooks.ANSWER_SECONDS
    )
