"""The agent's idea of the parent's time."""

from __future__ import annotations

import json
import time

import pytest

from nodes import signing
from nodes.agent.clock import ParentClock
from nodes.protocol import Unauthenticated


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ParentClock:
    """This machine says it is second 1,000,000."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    return ParentClock()


def refusal(parent_time: float) -> str:
    return json.dumps({"detail": "signed at …", "time": f"{parent_time:.3f}"})


def test_a_clock_that_was_never_corrected_is_this_machines(clock):
    assert clock.now() == 1_000_000


@pytest.mark.parametrize("off", [600, -600, 86_400 * 365])
def test_the_parents_time_in_a_refusal_corrects_signatures(clock, off):
    assert clock.learn(refusal(1_000_000 + off))
    assert clock.now() == 1_000_000 + off


def test_it_is_learnt_once_so_that_a_refusal_for_another_reason_is_not_tried_for_ever(clock):
    assert clock.learn(refusal(1_000_600))
    assert not clock.learn(refusal(1_000_600.9))
    assert not clock.learn(refusal(1_000_599.2))


def test_a_difference_below_two_seconds_is_not_worth_another_try(clock):
    assert not clock.learn(refusal(1_000_001.5))
    assert clock.now() == 1_000_000


def test_it_follows_when_this_machines_clock_is_set_right_meanwhile(clock, monkeypatch):
    clock.learn(refusal(1_000_600))
    monkeypatch.setattr(time, "time", lambda: 1_000_605.0)
    assert clock.now() == 1_001_205
    assert clock.learn(refusal(1_000_605))
    assert clock.now() == 1_000_605


@pytest.mark.parametrize(
    "body", ["", "not JSON", "[]", "null", '"text"', "{}", '{"time": null}', '{"time": "soon"}', '{"time": [1]}']
)
def test_a_refusal_without_a_time_teaches_nothing(clock, body):
    assert not clock.learn(body)
    assert clock.now() == 1_000_000


@pytest.mark.parametrize("body", ['{"time": "nan"}', '{"time": "inf"}', '{"time": 1e400}', '{"time": "-1e300"}'])
def test_a_time_that_is_none_teaches_nothing(clock, body):
    assert not clock.learn(body)
    assert clock.now() == 1_000_000


def test_what_it_learns_is_what_the_parent_tells_about_a_late_signature(clock):
    access_key, secret_key, public_key = signing.new_key()
    parent_now = 1_000_600.0

    def verified() -> signing.Verified:
        url = "http://127.0.0.1:8000/api/v1/agent/beat"
        signed = signing.sign("POST", url, b"{}", created=clock.now(), access_key=access_key, secret_key=secret_key)
        return signing.verify(
            "POST", url, list(signed.items()), find_public_key=lambda _: public_key, now=parent_now, max_age=300
        )

    with pytest.raises(Unauthenticated) as refused:
        verified()
    assert clock.learn(json.dumps(refused.value.as_dict()))
    assert verified().access_key == access_key
