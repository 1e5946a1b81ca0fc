"""Rate limits: they hold over all nodes and processes together, by key, host and item, and hold up nobody else."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from typing import Any

import pytest
from django.utils import timezone

from dispatch import buckets, lifecycle, pruning, queue
from dispatch.dispatcher import Dispatcher
from dispatch.models import Allocation, RateBucket, RateLimit, Shard, Source
from dispatch.states import ShardState
from nodes.protocol import Conflict, FieldError, NotFound
from tests.integration import factory
from tests.integration.factory import assert_partition, at_once, child, dispatch, done, fresh, partly, submit

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests put off is not awaited here."""
    monkeypatch.setattr(queue, "_wakes", queue.Wakes())


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> factory.Clock:
    """A clock that moves when it is told to only, so that tokens can be counted."""
    clock, began = factory.Clock(monkeypatch), timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: began + clock.ahead)
    return clock


def given_out(**of: Any) -> int:
    return sum(each.stop - each.start for each in Allocation.objects.filter(**of))


def hosts(*names: str) -> list[str]:
    return [f"https://{name}.org/{number}" for number, name in enumerate(names)]


def test_a_rate_holds_over_all_nodes_and_runs_together(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 2.0, 5)
    child("a", 20)
    child("b", 20)
    runs = [submit(50, rate_key="feeds") for _ in range(3)]
    dispatch()
    assert given_out() == 5
    dispatch()
    assert given_out() == 5
    still.forward(1.5)
    dispatch()
    assert given_out() == 8
    assert len(set(Allocation.objects.values_list("run_id", flat=True))) == 3
    for run in runs:
        assert_partition(run)


def test_a_long_pause_gives_no_more_than_the_burst(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 1.0, 3)
    a = child("a", 50)
    submit(50, rate_key="feeds")
    dispatch()
    still.forward(1000)
    a.beat()
    dispatch()
    assert given_out() == 6


def test_work_without_a_rate_is_not_held_up(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 0.1)
    child("a", 10)
    submit(9, rate_key="feeds", priority=9)
    other = submit(9)
    dispatch()
    assert given_out(run=other) == 9
    assert given_out() == 10


def test_explain_says_when_the_next_token_comes_and_the_pass_when_to_look_again(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 0.5)
    child("a", 4)
    run = submit(9, rate_key="feeds")
    assert queue.allocate_now().wake == pytest.approx(2.0)
    assert queue.allocate_now().wake == pytest.approx(2.0)
    (refusal,) = queue.explain(run.pk).refusals
    assert (refusal.code, refusal.reason) == ("rate", "rate feeds: next token in 2 s (0.5 a second, 1 at once)")
    still.forward(2.0)
    assert dispatch()


def test_each_host_has_a_bucket_of_its_own_and_a_slow_one_holds_up_nobody(still: factory.Clock) -> None:
    buckets.set_limit("host:*", 1.0, 1)
    buckets.set_limit("host:slow.org", 0.1, 1)
    child("a", 20)
    run = submit(hosts("slow", "slow", "slow", "b", "c", "b", "slow", "c"), rate_key="host:{host}")
    dispatch()
    assert sorted(Allocation.objects.values_list("start", flat=True)) == [0, 3, 4]
    assert_partition(run)
    still.forward(1)
    assert dispatch()
    assert sorted(Allocation.objects.values_list("start", flat=True)) == [0, 3, 4, 5, 7]
    assert_partition(run)
    assert {refusal.code for refusal in queue.explain(run.pk).refusals} == {"rate"}
    still.forward(9)
    assert not queue.allocate_now().nodes or given_out() == 6
    for _ in range(3):
        still.forward(10)
        lifecycle.forgive(timezone.now())
        for each in factory.Node.objects.all():
            factory.registry.record_beat(each.pk, at=timezone.now())
        dispatch()
    assert given_out() == fresh(run).count
    assert_partition(run)


def test_a_thousand_pieces_that_wait_do_not_hide_the_one_that_need_not(still: factory.Clock) -> None:
    buckets.set_limit("host:slow.org", 0.001, 1)
    made = child("worker", 400)
    items = [address for at in range(1100) for address in (f"https://slow.org/{at}", f"https://b{at}.org/")]
    run = submit(items, rate_key="host:{host}")
    for _ in range(8):
        works = made.works(1000)
        assert set(made.statuses(*[done(work) for work in works])) <= {200}
    quick = {int(start) for start in Allocation.objects.values_list("start", flat=True) if start % 2}
    assert len(quick) == 1100
    assert_partition(run)


def test_a_long_run_with_keys_by_item_is_gone_through_pass_by_pass(still: factory.Clock) -> None:
    buckets.set_limit("item:i7", 0.1, 1)
    child("a", 6000)
    run = submit(4500, rate_key="item:{item}")
    wakes = [queue.allocate_now().wake for _ in range(3)]
    assert wakes == [0.0, 0.0, None]
    assert given_out() == 4500
    assert_partition(run)


def test_pieces_that_wait_again_and_again_do_not_hide_one_that_came_back(
    still: factory.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "RETURNED_LIMIT", 3)
    buckets.set_limit("host:slow.org", 0.01, 1)
    a = child("a", 2)
    run = submit(hosts(*["slow", "b"] * 8), rate_key="host:{host}")
    slow, work = a.works()
    for _ in range(7):
        a.report(done(work))
        (work,) = a.works()
    assert work.start == 15
    still.forward(40)
    a.beat(held=[slow.allocation, work.allocation])
    a.release(work.allocation)
    # Seven older ones are due again as well, and their rate lets none of them through.
    for _ in range(3):
        dispatch()
    assert a.offered() != []
    assert_partition(run)


def test_the_host_of_an_item_may_come_from_its_source(still: factory.Clock) -> None:
    buckets.set_limit("host:x.org", 0.1, 1)
    for key, host in (("one", "x"), ("two", "x"), ("three", "y"), ("four", "y")):
        Source.objects.create(kind="feed", key=key, address=f"https://{host}.org/{key}")
    child("a", 9)
    submit(["one", "two", "three", "four", {"key": "five", "url": "http://X.org"}], rate_key="host:{host}")
    dispatch()
    assert sorted(Allocation.objects.values_list("start", flat=True)) == [0, 2, 3]


def test_items_and_sources_can_be_named_by_the_key(still: factory.Clock) -> None:
    buckets.set_limit("item:x", 0.1, 1)
    buckets.set_limit("source:*", 0.1, 2)
    child("a", 20)
    items = submit(["x", "y", "x", "z"], rate_key="item:{item}")
    sources = submit(
        [{"symbol": "AAPL"}, {"symbol": "IBM"}, {"symbol": "GE"}],
        type="data_import",
        params={"source": "sample", "start_date": "2024-01-01", "end_date": "2024-01-31"},
        rate_key="source:{source}",
    )
    dispatch()
    assert given_out(run=items) == 3
    assert given_out(run=sources) == 2
    assert set(RateBucket.objects.values_list("key", flat=True)) == {"item:x", "source:sample"}


def test_a_shard_that_came_back_is_cut_to_what_its_rate_lets_through(still: factory.Clock) -> None:
    limit = buckets.set_limit("feeds", 1.0, 10)
    a = child("a", 3)
    run = submit(8, rate_key="feeds", shard_size=8, max_attempts=5)
    (work,) = a.works()
    a.release(work.allocation)
    dispatch()
    # Two tokens are left of ten.
    assert sorted(Allocation.objects.filter(deadline__gt=timezone.now()).values_list("start", "stop"))[0] == (0, 2)
    assert_partition(run)
    assert Shard.objects.filter(run=run).count() == 2
    buckets.change_limit(limit.pk, burst=1, per_second=100.0)
    for _ in range(6):
        still.forward(1)
        a.beat(held=[each.pk for each in Allocation.objects.filter(node_id=a.id)])
        for work in a.works():
            a.report(done(work))
    a.report(*[done(work) for work in a.works()])
    assert_partition(run)
    counted = Counter(
        index for start, stop in Shard.objects.values_list("start", "stop") for index in range(start, stop)
    )
    assert set(counted.values()) == {1}


def test_a_shard_cut_before_the_limit_was_made_is_given_out_by_the_keys_of_its_items(still: factory.Clock) -> None:
    a = child("a", 9)
    run = submit(hosts("a", "a", "b", "b"), rate_key="host:{host}", shard_size=4)
    (work,) = a.works()
    assert (work.start, work.stop) == (0, 4)
    a.release(work.allocation)
    buckets.set_limit("host:a.org", 0.1, 1)
    dispatch()
    dispatch()
    live = Allocation.objects.filter(state="pending").order_by("start")
    assert list(live.values_list("start", "stop")) == [(0, 1)]
    assert_partition(run)
    still.forward(10)
    a.beat(held=[each.pk for each in live])
    dispatch()
    still.forward(1)
    dispatch()
    assert list(live.values_list("start", "stop")) == [(0, 1), (1, 2), (2, 4)]
    assert_partition(run)


def test_a_second_attempt_takes_a_token_too(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 1.0, 1)
    a = child("a", 3)
    submit(1, rate_key="feeds", backoff=0.0)
    (work,) = a.works()
    a.report(partly(work, 0, retry=True))
    assert a.works() == []
    still.forward(1)
    assert len(a.works()) == 1


def test_rated_work_is_not_queued_ahead(settings: Any, still: factory.Clock) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"lookahead_seconds": 1.0, "lookahead_limit": 20})
    buckets.set_limit("feeds", 100_000, 1000)
    a = child("a", 2)
    submit(100, rate_key="feeds")
    for _ in range(3):
        works = a.works()
        assert len(works) == 2
        a.report(*[{**done(work), "seconds": 0.005} for work in works])


@pytest.mark.parametrize("lift", ["remove", "raise"])
def test_what_waits_goes_on_when_its_limit_is_lifted(still: factory.Clock, lift: str) -> None:
    limit = buckets.set_limit("host:*", 0.001, 1)
    a = child("a", 50)
    run = submit(hosts(*"aabbab"), rate_key="host:{host}")
    dispatch()
    assert given_out() == 2
    if lift == "remove":
        buckets.remove_limit(limit.pk)
    else:
        buckets.change_limit(limit.pk, per_second=1000.0, burst=100)
    # What was put off is looked at again after half a minute at the latest.
    still.forward(30)
    a.beat(held=[each.pk for each in Allocation.objects.all()])
    dispatch()
    assert given_out() == 6
    assert_partition(run)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rate_key": "feeds"}, "there is no rate limit 'feeds'; there are: others"),
        ({"rate_key": "{hots}"}, "is not one of: {host}, {source}, {item}"),
        ({"rate_key": "a{"}, "a{"),
        ({"rate_key": "{source}"}, "params has no source"),
    ],
)
def test_a_key_that_could_never_mean_anything_is_refused(fields: dict[str, Any], words: str) -> None:
    buckets.set_limit("others", 1.0)
    with pytest.raises(FieldError) as raised:
        submit(1, **fields)
    assert raised.value.field == "rate_key"
    assert words in raised.value.message


def test_full_buckets_are_forgotten_and_drawn_ones_kept(still: factory.Clock) -> None:
    buckets.set_limit("item:*", 1.0, 1)
    child("a", 9)
    submit(["x", "y"], rate_key="item:{item}")
    dispatch()
    still.forward(0.5)
    assert buckets.forget(timezone.now()) == 0
    still.forward(0.5)
    pruning.prune(timezone.now())
    assert not RateBucket.objects.exists()


def test_limits_are_checked() -> None:
    made = buckets.set_limit("a", 1.0)
    for fields, name in (
        ({"key": "", "per_second": 1.0}, "key"),
        ({"key": "a\x00", "per_second": 1.0}, "key"),
        ({"key": "*" * 6, "per_second": 1.0}, "key"),
        ({"key": "b", "per_second": 0}, "per_second"),
        ({"key": "b", "per_second": float("nan")}, "per_second"),
        ({"key": "b", "per_second": True}, "per_second"),
        ({"key": "b", "per_second": 1.0, "burst": 0}, "burst"),
        ({"key": "b", "per_second": 1.0, "burst": 1.5}, "burst"),
    ):
        with pytest.raises(FieldError) as raised:
            buckets.set_limit(**fields)  # type: ignore[arg-type]
        assert raised.value.field == name
    with pytest.raises(Conflict):
        buckets.set_limit("a", 2.0)
    other = buckets.set_limit("b", 2.0)
    with pytest.raises(Conflict):
        buckets.change_limit(other.pk, key="a")
    with pytest.raises(NotFound):
        buckets.change_limit(made.pk + 100, burst=2)
    with pytest.raises(NotFound):
        buckets.remove_limit(made.pk + 100)
    assert RateLimit.objects.count() == 2


def test_a_changed_rate_counts_from_the_change_on(still: factory.Clock) -> None:
    limit = buckets.set_limit("feeds", 1.0, 100)
    child("a", 200)
    submit(300, rate_key="feeds")
    dispatch()
    assert given_out() == 100
    still.forward(2)
    buckets.change_limit(limit.pk, per_second=10.0)
    dispatch()
    assert given_out() == 102


@pytest.mark.django_db(transaction=True)
def test_dispatchers_that_pass_at_once_draw_each_token_once(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 4.0, 6)
    for name in "ab":
        child(name, 200)
    runs = [submit(60, rate_key="feeds"), submit(60, rate_key="feeds")]
    began = timezone.now()
    for _ in range(5):
        at_once(*[dispatch] * 4)
        seconds = (timezone.now() - began).total_seconds()
        assert given_out() == 6 + 4 * seconds
        still.forward(0.5)
    for run in runs:
        assert_partition(run)
    assert Shard.objects.filter(state=ShardState.ALLOCATED).count() == given_out()
    assert dt.timedelta(0) < timezone.now() - began


@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_wakes_for_the_next_token() -> None:
    buckets.set_limit("feeds", 20.0, 1)
    child("a", 100)
    submit(100, rate_key="feeds")
    loop = Dispatcher()
    began = time.monotonic()
    loop.start()
    try:
        # With a pass a second this would take eight.
        while given_out() < 9:
            assert time.monotonic() - began < 4
            time.sleep(0.05)
    finally:
        loop.stop()
    assert given_out() <= 1 + 20 * (time.monotonic() - began)


@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_wakes_for_what_was_put_off() -> None:
    buckets.set_limit("host:*", 10.0, 1)
    child("a", 100)
    run = submit(hosts(*"ab" * 12), rate_key="host:{host}")
    loop = Dispatcher()
    began = time.monotonic()
    loop.start()
    try:
        while given_out() < fresh(run).count:
            assert time.monotonic() - began < 4
            time.sleep(0.05)
    finally:
        loop.stop()
    assert_partition(run)
