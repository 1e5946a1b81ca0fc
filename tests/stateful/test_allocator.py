"""The allocator over time: nodes come, go and change, runs come, work ends, and each plan is carried out in the model.

What a single decision must be for any input is in ``tests/unit/test_allocator.py``; here its grants are what the next
decision stands on.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dispatch.allocator import allocate
from tests.stateful.allocations import DONE, RATE, WAITING, World, check, check_nothing_left
from tests.stateful.lengths import length

TYPES = ("echo", "import")
ITEMS = ("m", "m", "m", "x", "y")
"""Items by name; quotas are for x and y only."""
NUMBERS = st.integers(0, 11)
"""Which of those that there are, counted round."""
LABELS = st.sampled_from(({}, {}, {"zone": "eu"}))
CAPACITIES = st.integers(1, 4)


@st.composite
def quotas(draw: st.DrawFn) -> dict[tuple[str, str], tuple[int, int | None]]:
    keys = st.tuples(st.sampled_from(TYPES), st.sampled_from(("", "", "x", "y")))
    rules = {}
    for key in draw(st.lists(keys, max_size=3, unique=True)):
        slots = draw(st.integers(0, 2))
        rules[key] = (slots, draw(st.sampled_from((None, slots, slots + 1))))
    return rules


class Allocator(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(capacity=CAPACITIES, rules=quotas())
    def begin(self, capacity, rules):
        self.a_node_comes(capacity, TYPES, {}, rules, None)

    # Nodes

    @rule(
        capacity=CAPACITIES,
        types=st.sampled_from((TYPES, TYPES, TYPES[:1])),
        labels=LABELS,
        rules=quotas(),
        seconds=st.sampled_from((None, 0.05, 3.0)),
    )
    def a_node_comes(self, capacity, types, labels, rules, seconds):
        self.world.nodes[self.world.number()] = {
            "capacity": capacity,
            "types": types,
            "labels": labels,
            "quotas": rules,
            "online": True,
            "draining": False,
            "seconds": seconds,
        }

    @rule(which=NUMBERS)
    def a_node_goes(self, which):
        if number := self.one(self.world.nodes, which):
            for key in [key for key in self.world.pieces if self.world.held[key] == number]:
                self.world.end(key, WAITING)
            del self.world.nodes[number]

    @rule(
        which=NUMBERS,
        change=st.one_of(
            st.fixed_dictionaries({"capacity": CAPACITIES}),
            st.fixed_dictionaries({"quotas": quotas()}),
            st.fixed_dictionaries({"labels": LABELS}),
            st.fixed_dictionaries({"online": st.booleans()}),
            st.fixed_dictionaries({"draining": st.booleans()}),
        ),
    )
    def a_node_changes(self, which, change):
        if number := self.one(self.world.nodes, which):
            self.world.nodes[number].update(change)

    # Runs

    @rule(
        task_type=st.sampled_from(TYPES),
        items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=12),
        priority=st.integers(1, 3),
        age=st.integers(0, 3),
        labels=LABELS,
        size=st.integers(1, 3),
        rate=st.sampled_from(("", "", "r")),
    )
    def a_run_comes(self, task_type, items, priority, age, labels, size, rate):
        number = self.world.number()
        self.world.runs[number] = {
            "type": task_type,
            "items": items,
            "priority": priority,
            "age": float(age),
            "labels": labels,
            "size": size,
            "rate": rate,
            "cut": 0,
        }
        self.world.held.update({(number, index): WAITING for index in range(len(items))})
        self.a_pass_is_made()

    @rule(which=NUMBERS)
    def a_run_is_cancelled(self, which):
        if number := self.one(self.world.runs, which):
            for key in [key for key in self.world.held if key[0] == number]:
                del self.world.held[key]
                self.world.pieces.pop(key, None)
            del self.world.runs[number]

    @rule(which=st.lists(NUMBERS, min_size=1, max_size=4), well=st.booleans())
    def work_ends(self, which, well):
        for each in which:
            held = sorted(key for key in self.world.pieces if self.world.held[key] != WAITING)
            if key := self.one(held, each):
                self.world.end(key, DONE if well else WAITING)

    @rule(seconds=st.sampled_from((0.25, 1.0)))
    def time_passes(self, seconds):
        self.world.tokens = min(self.world.tokens + seconds * RATE.per_second, RATE.burst)

    # The decision

    @rule()
    def a_pass_is_made(self):
        world = self.world
        demands = [world.demand(number) for number, run in world.runs.items() if world.waits(number)]
        plan = allocate(demands, [world.offer(number) for number in world.nodes], world.terms(), explain=True)
        cuts = [(made.run, made.piece) for made in plan.grants if made.piece.shard is None] + plan.aside
        for run, piece in sorted(cuts, key=lambda each: each[1].start):
            world.cut(run, piece)
        for made in plan.grants:
            check(world, made)
            world.apply(made)
        check_nothing_left(world, plan)

    @invariant()
    def items_are_in_one_place(self):
        world = self.world
        for number, run in world.runs.items():
            covered = [index for index in range(run["cut"]) if world.held[number, index] != DONE]
            pieces = [piece for (of, _), piece in world.pieces.items() if of == number]
            assert sorted(index for piece in pieces for index in range(piece.start, piece.stop)) == covered

    @staticmethod
    def one(some, which):
        """One of ``some``, or None where there is none."""
        some = list(some)
        return some[which % len(some)] if some else None


def test_whatever_came_before_each_grant_is_the_one_that_the_rules_ask_for():
    run_state_machine_as_test(Allocator, settings=length("allocator", steps=40))
