"""The agent's idea of the parent's time."""

from __future__ import annotations

import json
import time

import pytest

from nodes import signing
from nodes.agent import clock as clocks
from nodes.agent.clock import ParentClock
from nodes.protocol import Unauthenticated

NOW = 1_800_000_000.0
YEAR = 86_400 * 365


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """This machine's clocks."""
    shown = {"wall": NOW, "steady": 500.0}
    monkeypatch.setattr(time, "time", lambda: shown["wall"])
    monkeypatch.setattr(time, "monotonic", lambda: shown["steady"])
    return shown


@pytest.fixture
def clock(machine: dict[str, float]) -> ParentClock:
    return ParentClock()


def refusal(parent_time: float) -> str:
    return json.dumps({"detail": "signed at …", "time": f"{parent_time:.3f}"})


def test_a_clock_that_was_never_corrected_is_this_machines(clock):
    assert clock.now() == NOW


@pytest.mark.parametrize("off", [600, -600, YEAR, -YEAR])
def test_the_parents_time_in_a_refusal_corrects_signatures(clock, off):
    assert clock.learn(refusal(NOW + off))
    assert clock.now() == NOW + off


@pytest.mark.parametrize("own", [0.0, NOW - 10 * YEAR, NOW - 600, NOW + 600, NOW + 10 * YEAR])
def test_however_wrong_this_machines_clock_is_one_refusal_is_enough(clock, machine, own):
    machine["wall"] = own
    assert clock.learn(refusal(NOW))
    clock.accepted(clock.offset)
    assert clock.now() == NOW


def test_it_is_learnt_once_so_that_a_refusal_for_another_reason_is_not_tried_for_ever(clock):
    assert clock.learn(refusal(NOW + 600))
    assert not clock.learn(refusal(NOW + 600.9))
    assert not clock.learn(refusal(NOW + 599.2))


def test_a_difference_below_two_seconds_is_not_worth_another_try(clock):
    assert not clock.learn(refusal(NOW + 1.5))
    assert clock.now() == NOW


def test_requests_refused_side_by_side_are_all_signed_again(clock):
    used = clock.offset
    assert clock.learn(refusal(NOW + 600), used)
    assert clock.learn(refusal(NOW + 600), used)


def test_it_follows_when_this_machines_clock_is_set_right_meanwhile(clock, machine):
    clock.learn(refusal(NOW + 600))
    clock.accepted(clock.offset)
    machine["wall"] = NOW + 605
    assert clock.now() == NOW + 1205
    assert clock.learn(refusal(NOW + 605))
    assert clock.now() == NOW + 605


def test_it_follows_however_often_clocks_are_set_as_long_as_each_time_is_accepted(clock):
    for number in range(1, 10 * clocks.TRIALS):
        assert clock.learn(refusal(NOW + 1000 * number))
        clock.accepted(clock.offset)
    assert clock.now() == NOW + 1000 * number


def test_an_answer_that_took_long_says_nothing_of_what_was_learnt_since(clock):
    """A claim waits for work at the parent, which has accepted it long ago."""
    claim = clock.offset
    for off in (600, 0, -600):
        assert clock.learn(refusal(NOW + off), clock.offset)
        clock.accepted(clock.offset)
        clock.accepted(claim)
        assert clock.now() == NOW + off


def test_nor_does_the_answer_to_what_was_signed_with_a_time_tried_before(clock, machine):
    clock.learn(refusal(NOW + 600))
    claim = clock.offset
    machine["steady"] += 1
    clock.learn(refusal(NOW - 600), claim)
    clock.accepted(clock.offset)
    clock.accepted(claim)
    assert clock.now() == NOW - 600


# Somebody in between, who tells another time


def test_a_time_with_which_the_parent_refuses_us_too_is_forgotten(clock):
    clock.learn(refusal(NOW + 600))
    clock.accepted(clock.offset)
    assert clock.learn(refusal(NOW + YEAR))
    clock.refused(clock.offset)
    assert clock.now() == NOW + 600


def test_what_was_accepted_holds_whatever_was_tried_meanwhile(clock):
    used = clock.offset
    clock.learn(refusal(NOW + YEAR))
    clock.accepted(used)
    lie = clock.offset
    clock.refused(lie)
    assert clock.now() == NOW


def test_only_so_many_times_are_tried_in_a_minute(clock, machine):
    believed = [clock.learn(refusal(NOW + 1000 * number)) for number in range(1, 10)]
    assert believed == [True] * clocks.TRIALS + [False] * (9 - clocks.TRIALS)
    machine["steady"] += clocks.TRIAL_SECONDS + 1
    assert clock.learn(refusal(NOW + 777_000))


def test_times_that_were_accepted_do_not_add_to_those_that_may_be_tried(clock):
    lies = [refusal(NOW + YEAR + 1000 * number) for number in range(clocks.TRIALS + 1)]
    assert all(clock.learn(lie) for lie in lies[:-2])
    clock.refused(clock.offset)
    assert clock.learn(refusal(NOW + 600))
    clock.accepted(clock.offset)
    assert [clock.learn(lie) for lie in lies[-2:]] == [True, False]


def test_a_time_that_another_has_replaced_holds_once_it_was_accepted(clock):
    clock.learn(refusal(NOW + 600))
    used = clock.offset
    clock.learn(refusal(NOW + YEAR), used)
    lie = clock.offset
    clock.accepted(used)
    clock.refused(lie)
    assert clock.now() == NOW + 600


@pytest.mark.parametrize(
    "body", ["", "not JSON", "[]", "null", '"text"', "{}", '{"time": null}', '{"time": "soon"}', '{"time": [1]}']
)
def test_a_refusal_without_a_time_teaches_nothing(clock, body):
    assert not clock.learn(body)
    assert clock.now() == NOW


@pytest.mark.parametrize("told", ["nan", "inf", "1e400", "-1e300", "0", str(clocks.EARLIEST - 1), str(clocks.LATEST)])
def test_a_time_that_no_parent_can_have_teaches_nothing(clock, told):
    assert not clock.learn(json.dumps({"time": told}))
    assert clock.now() == NOW


def test_what_it_learns_is_what_the_parent_tells_about_a_late_signature(clock):
    access_key, secret_key, public_key = signing.new_key()
    parent_now = NOW + 600

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
