"""A relay between its parent and its nodes: work from above becomes runs, what is done becomes reports, each once."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from dispatch import lifecycle, queue
from dispatch.lifecycle.grants import package
from dispatch.models import Allocation, Origin, Receipt, Run, Shard
from dispatch.relay import forwarding, granted, offering, place, taking
from dispatch.relay.forwarding import Sending
from dispatch.results import room
from dispatch.results.saver import Saver
from dispatch.states import LIVE, RunState
from nodes import failpoints, messages, registry
from nodes.fields import parse_quota
from nodes.protocol import Conflict, TooOld
from tests.integration.factory import (
    Child,
    Work,
    assert_partition,
    child,
    dispatch,
    done,
    failure,
    saver,
    submit,
    uploaded,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "relay")]

PARENT = "p" * 32
LATER = dt.timedelta(seconds=forwarding.PART_SECONDS)


def offered(allocation: int = 70, start: int = 100, count: int = 8, slots: int = 4, **about: Any) -> dict[str, Any]:
    """Work as the parent's offer brings it."""
    run = {"type": "echo", "params": {}, "timeout": 60.0, "priority": 5, "shard_size": 2, **about}
    items = [f"i{number}" for number in range(start, start + count)]
    work = [[allocation, 9, start, start + count, 1, items]]
    return {"runs": {"9": run}, "work": work, "slots": {str(allocation): slots}}


def taken(**more: Any) -> Run:
    message = offered(**more)
    assert taking.take(PARENT, message).held == [message["work"][0][0]]
    return Run.objects.get(origin__allocation=message["work"][0][0])


def due(now: dt.datetime | None = None) -> list[Sending]:
    return forwarding.due(PARENT, now)


def read(sending: Sending) -> messages.Entry:
    """The entry, as the parent reads it."""
    (entry,) = messages.read_report({"reports": [sending.entry]})
    return entry


def finish(mine: Child, works: list[Work]) -> None:
    assert set(mine.statuses(*(done(work) for work in works))) == {200}


def test_work_becomes_a_run_once_however_often_it_comes() -> None:
    run = taken()
    assert (run.count, run.shard_size, run.timeout, run.max_attempts) == (8, 2, 60.0, 1)
    assert taking.take(PARENT, offered()) == ([70], [])
    assert Run.objects.count() == 1
    assert taking.held(PARENT) == [70]


def test_what_it_has_no_executor_for_goes_back_and_hinders_nothing_else() -> None:
    message = offered(allocation=71)
    strange = offered(allocation=70, type="of-tomorrow")
    message["work"] += [[70, 10, 100, 108, 1, strange["work"][0][5]]]
    message["runs"]["10"] = strange["runs"]["9"]
    assert taking.take(PARENT, message) == ([71], [70])
    assert Run.objects.count() == 1


def test_a_relay_that_was_started_anew_still_has_what_it_had() -> None:
    assert taking.parent_before() == ""
    taken()
    assert taking.parent_before() == PARENT
    assert taking.held(PARENT) == [70]
    assert taking.held("q" * 32) == []


def test_what_runs_for_it_never_takes_more_slots_than_were_granted() -> None:
    nodes = [child(name, capacity=4) for name in ("a", "b")]
    first, second = taken(count=40, slots=3), taken(allocation=71, count=40, slots=2)
    dispatch()
    live = {run.pk: Allocation.objects.filter(run=run, state__in=LIVE).count() for run in (first, second)}
    assert live == {first.pk: 3, second.pk: 2}
    assert {each["code"] for each in _refusals()} == {"granted"}
    assert sum(mine.live() for mine in nodes) == 5


def test_nor_all_of_them_together_than_the_parent_allows() -> None:
    child(capacity=8)
    taken(count=40, slots=3)
    taken(allocation=71, count=40, slots=3)
    place.here = place.Place(capacity=4, limits={"echo": 9})
    dispatch()
    assert Allocation.objects.filter(state__in=LIVE).count() == 4
    place.here = place.Place(capacity=9, limits={"echo": 5})
    dispatch()
    assert Allocation.objects.filter(state__in=LIVE).count() == 5


def _refusals() -> list[dict[str, Any]]:
    return [{"code": refusal.code} for refusal in queue.explain().refusals]


def test_done_items_go_up_in_parts_and_the_last_report_ends_it() -> None:
    mine = child(capacity=2)
    run = taken()
    works = mine.works()
    finish(mine, works)
    assert due() == []  # not yet: more may come together
    (part,) = due(timezone.now() + LATER)
    entry = read(part)
    assert (entry.allocation, entry.part, entry.rows, entry.nodes) == (70, 1, 4, ("a",))
    assert entry.ranges == ((100, 104, 4),)
    assert due(timezone.now()) == [part]  # until the parent has it
    forwarding.settled(part)
    assert run.shards.filter(state="saved").count() == 2
    finish(mine, mine.works())
    (last,) = due()
    entry = read(last)
    assert (entry.part, entry.ranges, entry.errors) == (0, ((104, 108, 4),), ())
    assert due() == [last]
    forwarding.settled(last)
    run.refresh_from_db()
    assert run.state == RunState.COMPLETED
    assert taking.held(PARENT) == []
    assert due() == []
    assert_partition(run)


def test_a_report_says_the_same_after_a_crash_though_more_was_done_meanwhile() -> None:
    mine = child(capacity=3)
    taken()
    first, second, third = mine.works()
    finish(mine, [first])
    (part,) = due(timezone.now() + LATER)
    finish(mine, [third])
    now = timezone.now() + 3 * LATER
    again, more = due(now)
    assert again == part
    assert read(more).ranges == ((104, 106, 2),)
    assert due(now) == [again, more]
    assert second.allocation in Allocation.objects.filter(state__in=LIVE).values_list("pk", flat=True)


def test_segments_go_up_as_they_came_each_as_a_part_of_its_own() -> None:
    mine = child(capacity=4)
    taken()
    works = mine.works()
    assert set(mine.statuses(*uploaded([done(each) for each in works[:2]]), done(works[2]), done(works[3]))) == {200}
    sendings = due()
    parts = [read(each) for each in sendings]
    assert [entry.part for entry in parts] == [1, 2, 0]
    assert [bool(entry.segment) for entry in parts] == [True, True, False]
    assert [entry.offset for entry in parts[:2]] == [0, 2]
    assert [each.receipts for each in sendings[:1]] == [()]  # the receipt has both
    for each in sendings:
        forwarding.settled(each)
    assert not Receipt.objects.filter(saved_at=None).exists()
    assert taking.held(PARENT) == []


def test_items_that_failed_are_told_at_the_end_and_may_be_tried_elsewhere() -> None:
    mine = child(capacity=4)
    taken(count=4)
    first, second = mine.works()
    errors = [[first.start, "no luck", True]]
    body = {"allocation": first.allocation, "ranges": [[first.start + 1, first.stop, 0]], "errors": errors, "rows": []}
    assert mine.statuses(body, done(second)) == [200, 200]
    (last,) = due()
    entry = read(last)
    ((index, message, retry),) = [(error.index, error.message, error.retry) for error in entry.errors]
    assert (index, retry) == (100, True)
    assert "no luck" in message
    assert [each[:2] for each in entry.ranges] == [(101, 104)] or len(entry.ranges) == 2


def test_what_is_lost_below_is_done_again_below() -> None:
    mine = child(capacity=1)
    taken(count=2)
    (work,) = mine.works()
    assert mine.release(work.allocation) == [work.allocation]
    (again,) = mine.works()
    finish(mine, [again])
    assert len(due()) == 1


def test_what_the_parent_does_not_want_any_more_ends_here() -> None:
    mine = child(capacity=2)
    run = taken()
    (first, _) = mine.works()
    finish(mine, [first])
    assert taking.drop(PARENT, [70, 71]) == 1
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    assert mine.live() == 0
    assert (due(timezone.now() + LATER), taking.held(PARENT)) == ([], [])
    assert not Receipt.objects.filter(saved_at=None).exists()
    assert taking.drop(PARENT, [70]) == 0
    assert_partition(run)


@pytest.mark.parametrize("effect", [1, 3])
def test_a_relay_that_dies_while_it_drops_something_drops_it_at_the_next_word(effect: int) -> None:
    mine = child(capacity=2)
    run = taken()
    finish(mine, mine.works()[:1])
    with pytest.raises(failpoints.Injected), failpoints.armed(_dies(effect)):
        taking.drop(PARENT, [70])
    assert taking.held(PARENT) == [70]
    taking.drop(PARENT, [70])
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    assert not Receipt.objects.filter(saved_at=None).exists()
    assert (taking.held(PARENT), due()) == ([], [])


@pytest.mark.parametrize("effect", [1, 4])
def test_a_relay_that_dies_while_it_settles_the_last_report_settles_it_at_the_next_answer(effect: int) -> None:
    mine = child(capacity=4)
    run = taken()
    finish(mine, mine.works())
    (last,) = due()
    with pytest.raises(failpoints.Injected), failpoints.armed(_dies(effect)):
        forwarding.settled(last)
    assert due() == [last]
    forwarding.settled(last)
    run.refresh_from_db()
    assert (run.state, taking.held(PARENT)) == (RunState.COMPLETED, [])
    assert not Receipt.objects.filter(saved_at=None).exists()


def _dies(number: int) -> failpoints.Hook:
    """At this effect."""
    reached = itertools.count(1)

    def hook(name: str) -> None:
        if name == "effect" and next(reached) == number:
            raise failpoints.Injected

    return hook


def test_what_came_from_another_parent_is_nobodys_here() -> None:
    run = taken()
    assert taking.drop_others("q" * 32) == 1
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED


def test_what_was_passed_on_takes_no_room_any_more() -> None:
    mine = child(capacity=4)
    taken()
    works = mine.works()
    report = uploaded([done(each) for each in works[:2]])
    segment = settings.CASCADE.spool / f"{report[0]['segment']}.arrow"
    assert set(mine.statuses(*report, done(works[2]), done(works[3]))) == {200}
    sendings = due()
    room.forget()
    assert room.waiting() > 0
    for each in sendings[:1]:
        forwarding.settled(each)
    assert segment.exists()  # its second entry has not been passed on
    for each in sendings[1:]:
        forwarding.settled(each)
    assert not segment.exists()
    assert not Receipt.objects.exclude(payload=None).exists()
    room.forget()
    assert room.waiting() == 0


def test_a_crash_before_that_is_made_good_at_the_next_start() -> None:
    mine = child(capacity=4)
    taken(count=2)
    finish(mine, mine.works())
    Receipt.objects.update(saved_at=timezone.now())
    forwarding.purge()
    assert not Receipt.objects.filter(purged_at=None).exists()


def test_what_has_come_together_for_long_goes_up_in_parts_that_a_message_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "RANGES", 3)
    mine = child(capacity=8)
    run = taken(count=8, slots=8, shard_size=1)
    for work in mine.works():
        finish(mine, [work])
    sendings = due()
    assert run.shards.count() == 8
    assert [read(each).part for each in sendings] == [1, 2, 0]
    assert [len(read(each).ranges) for each in sendings] == [1, 1, 1]  # neighbours together
    assert [each.entry["ranges"][0][:2] for each in sendings] == [[100, 103], [103, 106], [106, 108]]
    monkeypatch.setattr(forwarding, "RANGES", 1)
    assert [len(message) for message in forwarding.messages(sendings)] == [2, 1]
    monkeypatch.setattr(forwarding, "BYTES", 1)
    assert [len(message) for message in forwarding.messages(sendings)] == [1, 1, 1]


def test_what_an_executor_gave_up_for_good_is_told_as_that() -> None:
    mine = child(capacity=1)
    taken(count=2)
    (work,) = mine.works()
    errors = [[work.start, "no such page", False], [work.start + 1, "busy", True]]
    assert mine.statuses({"allocation": work.allocation, "ranges": [], "errors": errors, "rows": []}) == [200]
    (last,) = due()
    assert [error.retry for error in read(last).errors] == [False, True]


def test_texts_of_many_errors_fit_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "ERROR_BYTES", 40)
    mine = child(capacity=1)
    taken(count=2)
    (work,) = mine.works()
    errors = [[index, "x" * 100, False] for index in (work.start, work.start + 1)]
    assert mine.statuses({"allocation": work.allocation, "ranges": [], "errors": errors, "rows": []}) == [200]
    (last,) = due()
    assert [len(error.message) for error in read(last).errors] == [20, 20]


def test_its_own_store_does_not_save_what_is_passed_on() -> None:
    mine = child(capacity=4)
    run = taken(count=2)
    finish(mine, mine.works())
    with saver() as made:
        assert isinstance(made, Saver)
        assert not made.once()
    assert Receipt.objects.get().saved_at is None
    assert Shard.objects.get(run=run).state == "spooled"


def test_outcomes_go_up_instead_of_being_kept_here() -> None:
    mine = child(capacity=1)
    taken(count=2)
    (work,) = mine.works()
    outcomes = [[work.start, {"memory": {"etag": "x"}, "counts": {"new": 1}}]]
    assert mine.statuses({**done(work), "outcomes": outcomes}) in ([200], [422])


def test_it_offers_what_its_nodes_can_do_now() -> None:
    child("a", capacity=4, labels={"zone": "x"})
    limited = child("b", capacity=6, labels={"zone": "y"})
    registry.set_quotas(limited.id, [parse_quota("echo=0/2")])
    gone = child("c", capacity=50)
    registry.drain(gone.id)
    told = offering.now()
    assert told["slots"] == 10
    assert told["types"] == {"echo": 6, "data_import": 10}
    assert sorted(each["zone"] for each in told["branches"]) == ["x", "y"]


def test_a_relay_below_offers_the_labels_and_types_of_its_nodes() -> None:
    mine = child("eu", capacity=9, labels={"zone": "x"})
    told = {"role": "relay", "id": "a" * 32, "slots": 6, "types": {"echo": 6, "crawl": 2}}
    mine.beat(**told, executors=["crawl", "echo"], branches=[{"disk": "big"}, {"disk": "small"}])
    found = offering.now()
    assert (found["slots"], found["types"]) == (6, {"echo": 6, "crawl": 2})
    assert found["branches"] == [{"disk": "big", "zone": "x"}, {"disk": "small", "zone": "x"}]


def test_slots_of_its_own_runs_are_not_offered() -> None:
    child(capacity=4)
    submit(3)
    dispatch()
    assert offering.now()["slots"] == 1


def beaten(mine: Child, name: str, **more: Any) -> dict[str, Any]:
    return mine.beat(hello=True, role="relay", id=name * 32, slots=3, types={"echo": 3}, branches=[{}], **more)


def test_a_relay_below_is_told_its_place_and_known_by_what_it_says() -> None:
    mine = child("eu", capacity=9)
    reply = beaten(mine, "a")
    assert [name for _, name in reply["path"]] == [settings.CASCADE.called]
    node = mine.node
    assert (node.role, registry.slots(node), node.facts["types"]) == ("relay", 3, {"echo": 3})


def test_a_relay_below_is_offered_slots_and_what_it_must_know_of_a_run_by_push_too() -> None:
    mine = child("eu", capacity=9)
    beaten(mine, "a")
    submit(30, name="wide", labels={})
    dispatch()
    offer = package(lifecycle.offered(mine.id))
    assert set(offer["slots"].values()) == {3}
    ((about),) = offer["runs"].values()
    assert about["name"] == "wide"
    claimed = mine.claimed(slots=3)
    assert claimed["slots"] == offer["slots"]
    assert claimed["runs"] == offer["runs"]


def test_of_a_relay_no_more_is_executing_than_it_has_slots() -> None:
    mine = child("eu", capacity=3)
    beaten(mine, "a")
    for _ in range(2):
        submit(4, shard_size=4)
        dispatch()
        mine.beat(hello=True, role="relay", id="a" * 32, slots=9, types={"echo": 9}, branches=[{}])
    held = mine.offered()
    Allocation.objects.update(slots=2)  # as of look-ahead: one runs, the other is queued behind it
    mine.accept(*held)
    mine.beat(held=held, running=held)
    assert (len(held), mine.executing()) == (2, 1)
    mine.release(held[0])
    mine.beat(held=held[1:], running=held[1:])
    assert mine.executing() == 1


def test_a_circle_and_a_tree_too_deep_are_refused_with_the_path() -> None:
    mine = child("eu", capacity=9)
    place.here = place.Place([["c" * 32, "root"], ["d" * 32, "mid"]])
    with pytest.raises(Conflict, match=r"root \(the same server\) > mid > .* > eu"):
        beaten(mine, "c")
    place.here = place.Place([[f"{number:032}", f"n{number}"] for number in range(settings.CASCADE.max_depth - 1)])
    with pytest.raises(Conflict, match=r"deeper than 8 levels .* n0 > n1"):
        beaten(mine, "c")


def test_where_it_hangs_is_known_to_its_other_processes_and_its_next_start() -> None:
    told = place.Place([["c" * 32, "root"]], 7, {"echo": 2})
    place.tell(told)
    assert place.here is told
    place.here = place.Place()  # as in a process that has no line to the parent
    assert [name for _, name in place.path()] == ["root", settings.CASCADE.called]
    with pytest.raises(Conflict, match="its own ancestor"):
        beaten(child("eu", capacity=9), "c")
    again = place.remembered()
    assert (again.path, again.capacity, again.limits) == (told.path, 7, {"echo": 2})


def test_the_same_id_twice_is_refused_while_both_are_here() -> None:
    first, second = child("eu", capacity=9), child("us", capacity=9)
    beaten(first, "a")
    with pytest.raises(Conflict, match=r"us and eu have the same id"):
        beaten(second, "a")
    first.beat(leaving=True)
    beaten(second, "a")


def test_ceilings_count_what_runs_not_what_is_queued_behind_it() -> None:
    mine = child(capacity=1)
    taken(count=40, slots=2)
    dispatch()
    assert mine.live() == 1
    above = granted.load([], queue.offers([mine.node], timezone.now()))
    assert set(above.left.values()) == {1}
    assert Origin.objects.get().slots == 2


def test_a_run_keeps_its_priority_among_others_below() -> None:
    mine = child(capacity=2)
    for allocation, priority in ((70, 3), (71, 9), (72, 5)):
        taken(allocation=allocation, priority=priority, slots=2)
    order = []
    for _ in range(6):
        works = mine.works()
        order += [Origin.objects.get(pk=work.run).allocation for work in works]
        finish(mine, works)
    assert order == [71] * 4 + [72] * 4 + [70] * 4


def test_a_relay_that_drains_gets_nothing_new_and_ends_what_it_has() -> None:
    from tests.integration.factory import submit

    mine = child("eu", capacity=9)
    beaten(mine, "a")
    first = submit(3)
    works = mine.works()
    registry.drain(mine.id)
    submit(3)
    assert mine.works() == []
    assert mine.beat(held=[work.allocation for work in works])["drain"] is True
    finish(mine, works)
    assert not Shard.objects.filter(run=first).exclude(state="spooled").exists()


def test_a_failure_below_is_told_as_errors() -> None:
    mine = child(capacity=1)
    taken(count=2)
    (work,) = mine.works()
    assert mine.statuses(failure(work)) == [200]
    while works := mine.works():
        assert set(mine.statuses(*(failure(each) for each in works))) == {200}
    (last,) = due()
    assert [error.index for error in read(last).errors] == [100, 101]


def test_a_peer_too_old_is_told_which_versions_fit() -> None:
    mine = child("old")
    with pytest.raises(TooOld, match="speaks version 0 of the protocol, this server 1 to 1"):
        mine.beat(hello=True, protocol=0)
    assert mine.beat(hello=True, protocol=7)["protocol"] == 1
    assert mine.beat(hello=True)["protocol"] == 1
    assert "protocol" not in mine.beat()


def test_a_further_piece_of_the_same_run_begins_with_what_was_measured_of_the_last_one() -> None:
    mine = child(capacity=1)
    taken(count=40, slots=1, shard_size=0)
    (first,) = mine.works()[:1]
    assert first.stop - first.start == 1  # nothing is known of it
    assert mine.statuses({**done(first), "seconds": 0.01}) == [200]
    taken(allocation=71, count=40, slots=1, shard_size=0)
    taking.drop(PARENT, [70])
    (again, *_) = mine.works()
    assert again.stop - again.start > 5
