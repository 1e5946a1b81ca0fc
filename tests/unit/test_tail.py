"""Late shards at the end of a run: which are divided, copied or taken back, and which are left alone."""

from __future__ import annotations

from dataclasses import replace

from dispatch.plans import Demand, Offer
from dispatch.tail import Late, even_out

DEMAND = Demand(run=1, type="echo", cut=10, count=10)


def offer(node: int, seconds: float | None = 0.1, **fields) -> Offer:
    speeds = {} if seconds is None else {"echo@1": seconds}
    return Offer(node, f"n{node}", **{"capacity": 1, "types": frozenset({"echo"}), "speeds": speeds, **fields})


def busy(node: int, seconds: float | None = 0.4, **fields) -> Offer:
    return offer(node, seconds, **{"in_use": {("echo", ""): 1}, **fields})


def late(node: int = 1, items: int = 10, age: float = 0.0, begun: bool = True, **fields) -> Late:
    return Late(
        **{"allocation": 7, "run": 1, "shard": 3, "node": node, "start": 0, "items": items, "begun": begun, "age": age}
        | fields
    )


def copies(*offers: Offer, of: Late, demand: Demand = DEMAND) -> list[tuple[int, int]]:
    evened = even_out({1: demand}, offers, [of])
    assert not evened.back
    return [(copy.late.allocation, copy.node) for copy in evened.copies]


def test_a_shard_on_a_slow_node_is_copied_to_an_idle_quick_one_which_says_why() -> None:
    evened = even_out({1: DEMAND}, [busy(1), offer(2)], [late()])
    (copy,) = evened.copies
    assert (copy.node, copy.late.allocation) == (2, 7)
    assert copy.reason == "second copy: n1 is thought to need 4 s more, this node 1 s"


def test_a_shard_that_is_nearly_done_is_left_alone() -> None:
    assert copies(busy(1), offer(2), of=late(age=3.0)) == []


def test_a_copy_that_would_win_next_to_nothing_is_not_made() -> None:
    assert copies(busy(1, 0.1), offer(2), of=late()) == []


def test_a_shard_far_over_its_time_may_hang_and_is_copied() -> None:
    assert copies(busy(1, 0.1), offer(2), of=late(age=4.0)) == [(7, 2)]


def test_the_quickest_of_the_idle_nodes_gets_the_copy() -> None:
    assert copies(busy(1), offer(2, 0.2), offer(3, 0.05), of=late()) == [(7, 3)]


def test_a_node_without_a_free_slot_or_not_eligible_gets_no_copy() -> None:
    for other in (
        busy(2, 0.1),
        offer(2, online=False),
        offer(2, draining=True),
        offer(2, types=frozenset()),
        offer(2, cpu=99.0, max_cpu=80.0),
        offer(2, embedded=True),
        offer(2, None),
    ):
        assert copies(busy(1), other, of=late()) == []


def test_a_free_slot_is_given_once() -> None:
    lates = [late(), late(allocation=8, shard=4)]
    evened = even_out({1: DEMAND}, [busy(1, capacity=2), offer(2)], lates)
    assert len(evened.copies) == 1


def test_a_copy_takes_one_of_the_slots_that_were_granted_above() -> None:
    demand = replace(DEMAND, ceilings=("run 1",))
    lates = [late(), late(allocation=8, shard=4)]
    offers = [busy(1, capacity=2), offer(2, capacity=2)]
    assert [len(even_out({1: demand}, offers, lates, {"run 1": left}).copies) for left in (0, 1, 2)] == [0, 1, 2]


def test_the_longest_wait_is_shortened_first() -> None:
    lates = [late(items=5), late(items=10, allocation=8, shard=4)]
    (copy,) = even_out({1: DEMAND}, [busy(1, capacity=2), offer(2)], lates).copies
    assert copy.late.allocation == 8


def test_a_node_is_never_its_own_second() -> None:
    assert copies(busy(1, capacity=4), of=late()) == []


def test_a_node_that_has_reported_nothing_yet_is_taken_for_one_like_the_others() -> None:
    # It may be starting its workers still, where one that has reported would be overdue.
    assert copies(busy(1, None), offer(2), of=late(age=4.0)) == []
    assert copies(busy(1, 0.1), offer(2), of=late(age=4.0)) == [(7, 2)]
    assert copies(busy(1, None), offer(2), of=late(age=9.0)) == [(7, 2)]


def test_with_no_speed_known_at_all_nothing_is_guessed() -> None:
    assert copies(busy(1, None), offer(2, None), of=late(age=60.0)) == []


def test_what_is_queued_behind_others_is_taken_back_instead_of_copied() -> None:
    evened = even_out({1: DEMAND}, [busy(1), offer(2)], [late(begun=False, ahead=10.0)])
    assert (evened.copies, [each.allocation for each in evened.back]) == ([], [7])


def test_what_is_queued_for_a_moment_only_stays() -> None:
    evened = even_out({1: DEMAND}, [busy(1, 0.01), offer(2, 0.01)], [late(begun=False, ahead=2.0)])
    assert (evened.copies, evened.back) == ([], [])


def test_a_long_shard_is_divided_so_that_both_end_together() -> None:
    evened = even_out({1: DEMAND}, [busy(1, 0.4), offer(2, 0.1)], [late(items=26, divisible=True)])
    (cut,) = evened.cuts
    # One item is under way; of 25, a fifth stays: 5 items of 0.4 s there, 20 of 0.1 s here.
    assert cut.items == 6
    assert (evened.copies, evened.back) == ([], [])


def test_what_a_beat_told_of_progress_stays_where_it_was_done() -> None:
    (cut,) = even_out({1: DEMAND}, [busy(1, 0.4), offer(2, 0.1)], [late(items=30, done=19, divisible=True)]).cuts
    assert cut.items == 22


def test_a_shard_with_one_item_left_is_not_divided_but_copied() -> None:
    evened = even_out({1: DEMAND}, [busy(1, 4.0), offer(2, 0.1)], [late(items=1, divisible=True)])
    assert (len(evened.copies), evened.cuts) == (1, [])


def test_a_division_that_wins_next_to_nothing_is_not_asked_for() -> None:
    evened = even_out({1: DEMAND}, [busy(1, 0.01), offer(2, 0.01)], [late(items=4, divisible=True)])
    assert (evened.copies, evened.cuts) == ([], [])


def test_a_shard_that_is_overdue_gives_back_all_that_it_has_not_reached() -> None:
    for slow in (busy(1, 0.1), busy(1, None)):
        (cut,) = even_out({1: DEMAND}, [slow, offer(2, 0.1)], [late(items=20, age=9.0, done=3, divisible=True)]).cuts
        assert cut.items == 4
