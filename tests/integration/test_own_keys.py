"""A child's own key: rotated by the child, and revoked between any request's authentication and what it does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.core import serializers
from django.db import connection
from django.test import Client

from api import agent as agent_routes
from api import authentication, beats
from dispatch import lifecycle, logs
from dispatch.lifecycle.staged import Row
from dispatch.models import Allocation, LogPiece, Question, Receipt, Run, Shard, StagedRow
from dispatch.relay import asking
from nodes import failpoints, keys, registry, signing
from nodes.keys import Caller, IssuedKey
from nodes.messages import Printed, Told
from nodes.models import AccessKey, Node
from nodes.protocol import CascadeError, Conflict, FieldError, Forbidden, Unauthenticated
from tests.integration.factory import Child, Work, at_once, child, dispatch, done, failure, partly, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def key() -> IssuedKey:
    return registry.add_node("alpha")[1]


def caller(key: IssuedKey | AccessKey, digest: str = "sha-256=:x:") -> Caller:
    row = AccessKey.objects.get(access_key=key.access_key)
    return Caller(row.node_id, row.pk, row.access_key, digest)


def live() -> set[str]:
    return set(AccessKey.objects.filter(revoked_at=None).values_list("access_key", flat=True))


def public() -> str:
    return signing.new_key()[2]


# Rotation, at the parent


def test_a_child_gets_a_second_key_for_a_public_half_of_its_own_and_the_old_one_stays_valid(key):
    made = public()
    fresh = keys.rotate_own(caller(key), made)
    assert fresh.public_key == made
    assert live() == {key.access_key, fresh.access_key}


def test_asked_again_after_a_lost_answer_the_parent_names_the_same_key(key):
    made = public()
    first = keys.rotate_own(caller(key), made)
    assert keys.rotate_own(caller(key), made).access_key == first.access_key
    assert len(live()) == 2


def test_a_new_key_that_was_never_used_is_replaced_and_one_in_use_is_not(key):
    lost = keys.rotate_own(caller(key), public())
    fresh = keys.rotate_own(caller(key), public())
    assert live() == {key.access_key, fresh.access_key}
    assert AccessKey.objects.get(pk=lost.pk).revoked_at
    AccessKey.objects.filter(pk=fresh.pk).update(last_used_at=fresh.created_at)
    with pytest.raises(Conflict, match="retire"):
        keys.rotate_own(caller(key), public())


def test_retiring_ends_older_keys_only(key):
    fresh = keys.rotate_own(caller(key), public())
    assert keys.retire(caller(key)) == []
    assert live() == {key.access_key, fresh.access_key}
    assert keys.retire(caller(fresh)) == [key.access_key]
    assert keys.retire(caller(fresh)) == []
    assert live() == {fresh.access_key}


def test_a_plain_key_a_device_and_this_server_itself_rotate_nothing(key):
    for other in (caller(key, digest=""), keys.inside(key.node.pk), Caller(key.node.pk, 0, "CR…", registration=1)):
        with pytest.raises(Forbidden):
            keys.rotate_own(other, public())
        with pytest.raises(Forbidden):
            keys.retire(other)
    assert live() == {key.access_key}


def test_a_revoked_key_rotates_nothing(key):
    mine = caller(key)
    keys.revoke(key.access_key)
    with pytest.raises(Unauthenticated):
        keys.rotate_own(mine, public())
    with pytest.raises(Unauthenticated):
        keys.retire(mine)
    assert live() == set()


@pytest.mark.parametrize("given", ["", "ab", "A" * 64, "0" * 63 + "g", "0" * 65, "0" * 64 + "\n"])
def test_what_is_no_public_key_is_refused(key, given):
    with pytest.raises(FieldError) as refused:
        keys.rotate_own(caller(key), given)
    assert refused.value.field == "public_key"


def test_a_public_key_of_somebody_else_or_of_before_is_not_registered_again(key):
    _, other = registry.add_node("beta")
    for row in AccessKey.objects.all():
        with pytest.raises(Conflict):
            keys.rotate_own(caller(key), row.public_key)
    assert live() == {key.access_key, other.access_key}


def test_a_revocation_is_told_after_its_commit(key, django_capture_on_commit_callbacks, monkeypatch):
    told: list[tuple[int, bool]] = []
    mine = caller(key)
    monkeypatch.setattr(keys, "ended", [lambda node_id: told.append((node_id, keys.is_live(mine)))])
    with django_capture_on_commit_callbacks(execute=True):
        keys.revoke(key.access_key)
        assert told == []
    assert told == [(key.node.pk, False)]


def test_of_many_open_sockets_the_dead_ones_are_found_in_one_look(key, django_assert_num_queries):
    _, off = registry.add_node("off")
    _, gone = registry.add_node("gone")
    ids = {each.pk: each.access_key for each in AccessKey.objects.all()}
    registry.update_node(off.node.pk, active=False)
    registry.remove_node(gone.node.pk)
    with django_assert_num_queries(1):
        assert {ids[pk] for pk in keys.live(ids)} == {key.access_key}


# Revoked after it was authenticated, before it acts

RECORDS = (Node, Run, Shard, Allocation, Receipt, StagedRow, Question, AccessKey, LogPiece)


def records() -> str:
    return "\n".join(serializers.serialize("json", model.objects.order_by("pk")) for model in RECORDS)


@pytest.fixture
def busy() -> tuple[Child, Work, Work, int]:
    """A child with one allocation that it works on, one that it has taken, and one that it was offered."""
    made = child("alpha", capacity=4)
    submit(2)
    dispatch()
    first, second = made.claim(2)
    made.beat(held=[first.allocation, second.allocation], running=[first.allocation])
    lifecycle.stage(made.caller, first.allocation, [Row(str(first.items[0]), "k", ["x", 0, "y"])])
    submit(1)
    dispatch()
    (offered,) = made.offered(second.allocation)
    Question.objects.create(node_id=made.id, within=6.0)
    return made, first, second, offered


VERBS: dict[str, Callable[[Child, Work, Work, int], Any]] = {
    "beat": lambda made, first, second, offered: made.beat(hello=True, held=[], executors=[], leaving=True),
    "seen": lambda made, first, second, offered: lifecycle.seen(made.caller, ["echo"], cpu=50.0),
    "claim": lambda made, first, second, offered: made.claim(),
    "accept": lambda made, first, second, offered: made.accept(offered),
    "log": lambda made, first, second, offered: logs.take(made.caller, [Printed(first.allocation, 0, "a line\n")]),
    "release": lambda made, first, second, offered: lifecycle.release(made.caller, [second.allocation]),
    "report": lambda made, first, second, offered: made.report(done(first)),
    "report_failed": lambda made, first, second, offered: made.report(partly(first, first.start)),
    "report_crash": lambda made, first, second, offered: made.report(failure(first)),
    "begin": lambda made, first, second, offered: lifecycle.begin(made.caller, offered),
    "stage": lambda made, first, second, offered: lifecycle.stage(
        made.caller, first.allocation, [Row(str(first.items[0]), "k2", ["x", 1, "z"])]
    ),
    "report_staged": lambda made, first, second, offered: lifecycle.report_staged(made.caller, first.allocation, {}),
    "report_failure": lambda made, first, second, offered: lifecycle.report_failure(
        made.caller, first.allocation, "it broke"
    ),
    "tell": lambda made, first, second, offered: asking.told(
        made.caller, [Told(Question.objects.order_by("-pk").values_list("pk", flat=True).first() or 0, 200, {}, "")]
    ),
    "rotate": lambda made, first, second, offered: keys.rotate_own(
        replace(made.caller, content_digest="sha-256=:x:"), public()
    ),
    "retire": lambda made, first, second, offered: keys.retire(replace(made.caller, content_digest="sha-256=:x:")),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("ended", ["revoked", "off", "removed"])
def test_a_verb_whose_key_ends_after_its_authentication_changes_nothing(busy, folder, verb, ended):
    made = busy[0]
    if ended == "revoked":
        keys.revoke(made.caller.access_key)
    elif ended == "off":
        registry.update_node(made.id, active=False)
    else:
        registry.remove_node(made.id, force=True)
    before = records()
    with pytest.raises(CascadeError) as refused:
        VERBS[verb](*busy)
    # Of a node that is gone, nothing is this caller's any more; else it is told that its key has ended.
    assert refused.value.status in ((401, 404) if ended == "removed" else (401,))
    assert records() == before


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("rotate", "retire")])
def test_the_same_verbs_do_change_something_with_a_live_key(busy, folder, verb):
    before = records()
    VERBS[verb](*busy)
    assert records() != before


def test_every_verb_that_a_child_has_is_among_them():
    assert {*agent_routes.VERBS, *agent_routes.KEY_VERBS} <= VERBS.keys()


@pytest.fixture
def verbs_let_go() -> Iterator[None]:
    """The threads of the verbs close their connections: else the database could not be removed."""
    yield
    for threads in (agent_routes.THREADS, beats.THREAD):
        gate = threading.Barrier(threads._max_workers)

        def leave(gate: threading.Barrier = gate) -> None:
            gate.wait(30)
            connection.close()

        for each in [threads.submit(leave) for _ in range(threads._max_workers)]:
            each.result()


@pytest.mark.usefixtures("verbs_let_go")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "beat", b'{"hello": true}'),
        ("POST", "claim", b'{"slots": 4}'),
        ("POST", "accept", b'{"allocations": [1]}'),
        ("POST", "release", b'{"allocations": [1]}'),
        ("POST", "report", b'{"reports": []}'),
        ("PUT", f"segments/{hashlib.sha256(b'rows').hexdigest()}", b"rows"),
        ("POST", "rotate", json.dumps({"public_key": "ab" * 32}).encode()),
        ("POST", "retire", b"{}"),
    ],
)
def test_a_request_whose_key_is_revoked_while_it_is_under_way_is_a_401(key, folder, monkeypatch, method, path, body):
    real, seen = authentication.authenticate, []

    def authenticate(*args: Any, **kwargs: Any) -> Caller:
        found = real(*args, **kwargs)
        keys.revoke(key.access_key)
        seen.append(records())
        return found

    monkeypatch.setattr(authentication, "authenticate", authenticate)
    url = f"http://testserver/api/v1/agent/{path}"
    pair = {"access_key": key.access_key, "secret_key": key.secret_key}
    signed = {name.replace("-", "_"): value for name, value in signing.sign(method, url, body, **pair).items()}
    headers: dict[str, Any] = {f"HTTP_{name.upper()}": value for name, value in signed.items()}
    answer = Client().generic(method, url, body, content_type="application/json", **headers)
    assert (answer.status_code, "revoked" in answer.json()["detail"]) == (401, True)
    assert [records()] == seen


# At the same moment


@pytest.mark.django_db(transaction=True)
def test_a_revocation_waits_for_a_verb_that_has_found_the_key_alive():
    """Otherwise what the verb writes would be committed after the revocation."""
    made = child("alpha")
    submit(1)
    dispatch()
    order: list[str] = []
    ended = threading.Event()

    def revoke() -> None:
        keys.revoke(made.caller.access_key)
        order.append("revoked")
        ended.set()
        connection.close()

    revoking = threading.Thread(target=revoke)
    verb = threading.current_thread()

    def hook(point: str) -> None:
        if threading.current_thread() is not verb:
            return
        if point == "write.committing" and not revoking.ident:
            revoking.start()
            assert not ended.wait(0.5)
        if point == "write.committed" and "claimed" not in order:
            order.append("claimed")

    with failpoints.armed(hook):
        assert len(made.claim()) == 1
    revoking.join(30)
    assert order == ["claimed", "revoked"]
    with pytest.raises(Unauthenticated):
        made.claim()


@pytest.mark.django_db(transaction=True)
def test_however_many_rotations_come_at_once_two_keys_are_live():
    _, key = registry.add_node("alpha")
    mine = caller(key)

    def rotate() -> str:
        try:
            return keys.rotate_own(mine, public()).access_key
        finally:
            connection.close()

    at_once(*[rotate] * 6)
    assert key.access_key in live()
    assert len(live()) == 2


@pytest.mark.django_db(transaction=True)
def test_the_same_rotation_sent_twice_at_once_makes_one_key():
    _, key = registry.add_node("alpha")
    mine, made = caller(key), public()

    def rotate() -> str:
        try:
            return keys.rotate_own(mine, made).access_key
        finally:
            connection.close()

    assert len(set(at_once(*[rotate] * 4))) == 1
    assert AccessKey.objects.count() == 2


@pytest.mark.parametrize("verb", sorted({*agent_routes.VERBS, *agent_routes.KEY_VERBS}))
def test_a_body_that_is_no_object_is_refused_by_every_verb(key, verb):
    with pytest.raises(FieldError, match="body"):
        agent_routes.perform(caller(key), verb, [None, None])
