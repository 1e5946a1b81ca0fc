"""Rates: what a bucket lets through in any window, keys from templates, hosts, and which limit holds for a key."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch import rates
from dispatch.rates import Bucket, Limits, Rate, whole
from nodes.protocol import FieldError

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def later(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


@given(
    st.floats(0.01, 500),
    st.integers(1, 30),
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 40), st.floats(0, 3)), max_size=30),
)
def test_in_no_window_more_than_the_burst_and_the_rate(
    per_second: float, burst: int, asked: list[tuple[float, int, float]]
) -> None:
    """Also when the clocks of those who ask differ by some seconds."""
    bucket = Bucket(Rate(per_second, burst), burst, NOW)
    at, taken = 0.0, []
    for pause, count, behind in asked:
        at += pause
        bucket = bucket.filled(later(at - behind))
        took = min(count, whole(bucket.tokens))
        bucket = Bucket(bucket.rate, bucket.tokens - took, bucket.at)
        taken.append((at, took))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            seconds = taken[last][0] - taken[first][0]
            # A clock that was behind and is right again has its own difference to make up for.
            assert sum(took for _, took in taken[first : last + 1]) <= burst + per_second * (seconds + 3) + 1e-6


def test_a_bucket_fills_to_its_burst_and_says_when_it_has_enough() -> None:
    bucket = Bucket(Rate(2.0, 5), 1.0, NOW)
    assert bucket.filled(later(1.25)).tokens == 3.5
    assert bucket.filled(later(60)).tokens == 5
    assert bucket.wait(4) == 1.5
    assert bucket.wait(1) == 0


def test_a_clock_that_is_behind_adds_nothing_and_takes_nothing() -> None:
    bucket = Bucket(Rate(1.0, 5), 1.0, NOW)
    assert bucket.filled(later(-30)) == bucket
    assert bucket.filled(later(-30)).filled(later(2)).tokens == 3


def test_a_bucket_filled_by_a_clock_that_was_far_ahead_fills_again() -> None:
    bucket = Bucket(Rate(1.0, 5), 1.0, later(86_400)).filled(NOW)
    assert (bucket.tokens, bucket.at) == (1.0, NOW)
    assert bucket.filled(later(2)).tokens == 3


def test_a_lowered_burst_holds_at_once() -> None:
    assert Bucket(Rate(1.0, 2), 50.0, NOW).filled(NOW).tokens == 2


@pytest.mark.parametrize(
    ("template", "names"), [("feeds", set()), ("host:{host}", {"host"}), ("{source}/{item}", {"source", "item"})]
)
def test_places_of_a_template(template: str, names: set[str]) -> None:
    assert rates.places(template) == names


@pytest.mark.parametrize(
    "template", ["{hots}", "{", "}", "{}", "{0}", "{host.x}", "{host!r}", "{host:>9}", "{host[0]}"]
)
def test_a_template_that_means_nothing_is_refused(template: str) -> None:
    with pytest.raises(FieldError) as raised:
        rates.places(template)
    assert raised.value.field == "rate_key"


def test_keys_are_filled_in_and_long_ones_stay_different() -> None:
    assert rates.fill("{source}@{host}", source="eod", host="x.org") == "eod@x.org"
    one, two = rates.fill("{item}", item="a" * 300 + "1"), rates.fill("{item}", item="a" * 300 + "2")
    assert one != two
    assert len(one) == len(two) == 200


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://News.Example:8443/feed?x=1", "news.example"),
        ("http://user:secret@x.org", "x.org"),
        ("http://[::1]:80/", "::1"),
        ("news.example/feed", "news.example"),
        ("news.example:80/feed", "news.example"),
        ("AAPL", ""),
        ("BRK.B", ""),
        ("http://[broken", ""),
        ("", ""),
        ("://", ""),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert rates.host_of(address) == host


def test_an_items_address_is_its_url_or_itself() -> None:
    assert rates.address_of({"key": "k", "url": "https://x.org/a"}) == "https://x.org/a"
    assert rates.address_of("https://y.org/") == "https://y.org/"
    assert rates.address_of({"key": "https://z.org/", "url": 7}) == "https://z.org/"
    assert rates.address_of({"symbol": "AAPL"}) == rates.address_of(5) == ""


def test_the_limit_of_a_key_is_its_own_or_that_of_the_longest_pattern() -> None:
    own, all_, hosts = Rate(1, 1), Rate(2, 1), Rate(3, 1)
    limits = Limits([("host:x.org", own), ("*", all_), ("host:*", hosts)])
    assert [limits.of(key) for key in ("host:x.org", "host:y.org", "z")] == [own, hosts, all_]
    assert limits.named("host:y.org") == ("host:*", hosts)
    assert Limits([("a.c", own)]).of("abc") is None
    assert not Limits([])


def test_items_of_one_key_in_a_row_are_one_stretch() -> None:
    assert rates.stretches(["a", "a", "", "a"], 5) == [(5, 7, "a"), (7, 8, ""), (8, 9, "a")]
    assert rates.stretches([], 5) == []
