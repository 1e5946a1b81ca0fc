"""Searches that learn: trials are added as results are saved, the same ones whatever comes between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from django.conf import settings

from dispatch import advising, lifecycle
from dispatch.advising import Advisor
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run, Task
from dispatch.results import saver, spool
from dispatch.results.reducing import reduce_ended
from dispatch.results.saver import Saver
from dispatch.states import RunState
from nodes.executors.base import ItemFailed
from nodes.executors.optimization import Optimization
from nodes.executors.rows import encode, inline, to_table
from nodes.protocol import FieldError
from tests.integration.factory import Child, Clock, Work, assert_partition, child, dispatch, fresh, save, state
from tests.integration.factory import saver as made_saver
from tests.searches import alone

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]

TRIALS = 20
PARALLEL = 4
PARAMS: dict[str, Any] = {
    "source": "sample",
    "symbols": ["FB"],
    "strategy": "rsi_reversion",
    "space": {"period": {"low": 2, "high": 30}, "lower": {"low": 10, "high": 45}},
    "constraints": {"trades": {"min": 1}},
    "objective": "total_return",
    "trials": TRIALS,
    "parallel": PARALLEL,
}


@pytest.fixture
def store(folder: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Saver]:
    """A parent's result store, saved to by the test."""
    with made_saver() as made:
        monkeypatch.setattr(saver, "_store", made.store)
        yield made


@pytest.fixture
def node() -> Child:
    return child(types=["optimization"])


def submit(**given: Any) -> Run:
    frozen.cache_clear()
    return lifecycle.submit(type="optimization", items=[], params=PARAMS | given, shard_size=1, backoff=0.0)


def result(work: Work, params: dict[str, Any], *, fails: Any = ()) -> dict[str, Any]:
    """What a child reports of ``work``."""
    executor = Optimization(params)
    entry: dict[str, Any] = {"allocation": work.allocation, "ranges": [], "errors": [], "rows": [], "seconds": 6.0}
    for index, item in enumerate(work.items, work.start):
        try:
            if index in fails:
                raise ItemFailed(f"no luck with trial {index}")
            entry["rows"] += inline(Optimization.dataset, executor.run(item), 10) or []
            entry["ranges"].append([index, index + 1, 1])
        except ItemFailed as error:
            entry["errors"].append([index, str(error), False])
    return entry


def go_through(
    run: Run, node: Child, store: Saver, *, order: int = 0, fails: Any = (), advisor: Advisor | None = None
) -> None:
    """To the end, one report at a time by chance; without ``advisor`` a new one each time."""
    chance = random.Random(order)
    held: list[Work] = []
    while state(run) == RunState.RUNNING:
        held += node.works()
        assert 0 < len(held) <= PARALLEL
        work = held.pop(chance.randrange(len(held)))
        assert node.statuses(result(work, run.params, fails=fails)) == [200]
        save(store)
        (advisor or Advisor()).once()
        assert_partition(run)


def trials(run: Run) -> list[Any]:
    """The params of all trials, whose numbers are checked."""
    frozen.cache_clear()
    items: list[Any] = frozen(run.pk).all()
    assert [item["trial"] for item in items] == list(range(len(items)))
    return [item["params"] for item in items]


def test_a_run_begins_with_as_many_trials_as_may_be_under_way_and_grows_to_its_end(store: Saver, node: Child) -> None:
    run = submit()
    assert (run.count, run.expected, run.growing) == (PARALLEL, TRIALS, True)
    go_through(run, node, store, advisor=Advisor())
    ended = fresh(run)
    assert (ended.state, ended.count, ended.saved, ended.growing) == (RunState.COMPLETED, TRIALS, TRIALS, False)
    assert trials(run) == alone(PARAMS)
    assert reduce_ended() == 1
    reduction = fresh(run).reduction or {}
    rows = store.store.to_frame("optimization", run=run.pk)
    assert reduction["best"][0]["value"] == rows[rows["feasible"]]["value"].max()
    assert reduction["best"][0]["params"] == trials(run)[reduction["best"][0]["trial"]]
    assert len(reduction["ranking"]) == TRIALS


def test_the_order_of_results_and_restarts_of_the_parent_do_not_change_the_trials(store: Saver, node: Child) -> None:
    run = submit()
    go_through(run, node, store, order=3)  # another Advisor after each result, as after a restart
    assert trials(run) == alone(PARAMS)
    assert trials(run) != alone(PARAMS | {"seed": 1})


def test_trials_that_fail_are_told_as_failed_and_the_others_go_on(store: Saver, node: Child) -> None:
    fails = {0, 2, 5, 6, 7, 8, TRIALS - 1}
    run = submit()
    go_through(run, node, store, fails=fails, order=1, advisor=Advisor())
    ended = fresh(run)
    assert (ended.state, ended.saved, ended.failed) == (RunState.PARTIAL, TRIALS - len(fails), len(fails))
    assert trials(run) == alone(PARAMS, fails)


@pytest.mark.parametrize("column", ["value", "violation"])
@pytest.mark.parametrize("number", [None, float("nan"), float("inf")])
def test_rows_that_no_trial_can_have_brought_do_not_hold_up_the_search(
    store: Saver, node: Child, column: str, number: float | None
) -> None:
    run = submit(trials=PARALLEL + 2)
    for work in node.works():
        entry = result(work, run.params)
        table = to_table(Optimization.dataset, entry.pop("rows"))
        place = table.schema.get_field_index(column)
        # As a node uploads it, where NaN stays what it is.
        changed = table.set_column(place, table.schema.field(place), pa.array([number], pa.float64()))
        segment = spool.receive([encode(changed)], settings.CASCADE.spool, limit=100_000)
        assert node.statuses({**entry, "segment": segment.sha256}) == [200]
    save(store)
    assert Advisor().once() == 2


def test_a_run_of_which_every_trial_fails_has_them_all(store: Saver, node: Child) -> None:
    run = submit(symbols=["NOPE"])
    go_through(run, node, store, advisor=Advisor())
    assert (state(run), fresh(run).failed) == (RunState.FAILED, TRIALS)


def test_nothing_is_added_before_the_oldest_trial_has_been_saved(store: Saver, node: Child) -> None:
    run = submit()
    works = sorted(node.works(), key=lambda work: work.start)
    for work in works[1:]:
        node.report(result(work, run.params))
    save(store)
    assert Advisor().once() == 0
    node.report(result(works[0], run.params))
    assert Advisor().once() == 0  # accepted, not saved
    save(store)
    assert Advisor().once() == PARALLEL
    assert fresh(run).count == 2 * PARALLEL


def test_what_two_servers_advise_at_once_is_added_once(store: Saver, node: Child) -> None:
    run = submit()
    first, second = Advisor(), Advisor()
    for work in node.works():
        node.report(result(work, run.params))
    save(store)
    assert first.once() == PARALLEL
    assert second.once() == 0
    for work in node.works():
        node.report(result(work, run.params))
    save(store)
    assert second.once() == PARALLEL
    assert first.once() == 0
    assert trials(run) == alone(PARAMS)[: 3 * PARALLEL]


def test_a_cancelled_run_gets_no_more_trials(store: Saver, node: Child) -> None:
    run = submit()
    advisor = Advisor()
    works = node.works()
    node.report(result(works[0], run.params))
    save(store)
    assert advisor.once() == 1
    lifecycle.cancel(run.pk)
    assert advisor.once() == 0
    assert (state(run), fresh(run).count) == (RunState.CANCELLED, PARALLEL + 1)
    assert_partition(run)


def test_a_run_that_cannot_be_advised_ends_with_the_trials_it_has(store: Saver, node: Child, clock: Clock) -> None:
    run = submit()
    Run.objects.filter(pk=run.pk).update(params=run.params | {"strategy": "gone"})
    other = submit(seed=1)
    advisor = Advisor()
    while works := node.works():
        for work in works:
            node.report(result(work, other.params))
    save(store)
    assert advisor.once() == PARALLEL  # of the other run
    clock.forward(advising.TROUBLE_SECONDS - 5)
    advisor.once()
    assert state(run) == RunState.RUNNING
    clock.forward(6)
    advisor.once()
    assert (state(run), fresh(run).count) == (RunState.COMPLETED, PARALLEL)
    assert state(other) == RunState.RUNNING


def test_a_space_with_fewer_combinations_than_trials_is_gone_through_once(store: Saver, node: Child) -> None:
    run = submit(space={"period": {"low": 2, "high": 8}})
    assert run.expected == 7
    go_through(run, node, store, advisor=Advisor())
    assert sorted(each["period"] for each in trials(run)) == list(range(2, 9))


def test_grid_and_named_trials_are_complete_from_the_start(store: Saver, node: Child) -> None:
    grid = submit(search="grid", space={"period": {"low": 2, "high": 8}})
    named = lifecycle.submit(
        type="optimization", params=PARAMS, items=[{"key": "a", "trial": 5, "params": {"period": 9}}]
    )
    assert [(run.count, run.expected, run.growing) for run in (grid, named)] == [(7, None, False), (1, None, False)]
    dispatch()
    assert Advisor().once() == 0


def test_a_task_without_items_can_be_run_again_and_again(store: Saver, node: Child) -> None:
    task = Task.objects.create(name="nightly", type="optimization", params=PARAMS)
    first, second = lifecycle.submit_task(task), lifecycle.submit_task(task, params={"seed": 1})
    assert [(run.count, run.growing) for run in (first, second)] == [(PARALLEL, True)] * 2
    assert trials(first) != trials(second)


def test_what_can_never_be_searched_is_refused_on_submission() -> None:
    with pytest.raises(FieldError, match=r"params\.space\.fats: 'fats' is not a parameter of rsi_reversion"):
        submit(space={"fats": [1]})
    with pytest.raises(FieldError, match=r"items\[0\]: 'AAPL' is not a trial"):
        lifecycle.submit(type="optimization", params=PARAMS, items=["AAPL"])
    assert settings.CASCADE.max_items >= 100_000
    assert not Run.objects.exists()
