"""What one key may ask at once and in a second, and that it is nobody else's business."""

from __future__ import annotations

import math

import pytest
from django.conf import settings as django_settings

from api.limits import BURST_SECONDS, Hold, KeyLimits
from nodes.protocol import TooMany


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def limits(settings, now) -> KeyLimits:
    update = {"key_requests": 10, "key_megabytes": 1, "key_concurrent": 4}
    settings.CASCADE = django_settings.CASCADE.model_copy(update=update)
    return KeyLimits(clock=lambda: now[0])


def served(limits: KeyLimits, key: str = "CNa", **charge: int) -> bool:
    try:
        limits.check(key)
    except TooMany:
        return False
    limits.charge(key, **charge)
    return True


def test_a_burst_passes_and_then_a_key_gets_its_rate(limits, now):
    burst = int(10 * BURST_SECONDS)
    assert [served(limits) for _ in range(burst + 5)] == [True] * burst + [False] * 5
    now[0] += 1
    assert [served(limits) for _ in range(15)] == [True] * 10 + [False] * 5


def test_when_to_come_back_is_told_and_true(limits, now):
    while served(limits):
        pass
    with pytest.raises(TooMany) as refused:
        limits.check("CNa")
    assert 0 < refused.value.retry_after <= 0.1
    now[0] += refused.value.retry_after
    assert served(limits)


def test_one_noisy_key_leaves_the_others_alone(limits):
    while served(limits, "CNnoisy"):
        pass
    assert served(limits, "CNquiet")


def test_one_large_upload_passes_and_is_paid_for_afterwards(limits, now):
    assert served(limits, size=12_000_000)
    with pytest.raises(TooMany) as refused:
        limits.check("CNa")
    assert math.isclose(refused.value.retry_after, 10, rel_tol=0.01)
    now[0] += 10.1
    assert served(limits)


def test_what_is_answered_at_once_is_limited_and_given_back(limits):
    holds = [Hold(limits) for _ in range(4)]
    for hold in holds:
        hold.take("CNa")
    assert not served(limits)
    assert served(limits, "CNb")
    holds[0].release()
    holds[0].release()
    assert served(limits)
    holds[1].take("CNa")  # twice is once
    assert served(limits)


def test_a_request_that_ended_before_its_key_was_known_holds_nothing(limits):
    for _ in range(10):
        hold = Hold(limits)
        hold.release()
        hold.take("CNa")
    assert served(limits)
