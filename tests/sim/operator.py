"""People and other programs: they submit, cancel, retry, drain, revoke, and change what nodes may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Q

from dispatch import lifecycle, queue
from dispatch.models import Run
from nodes import keys, registry
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Node

if TYPE_CHECKING:
    from tests.sim.world import World


class Operator:
    """Wishes at random moments; whether the parent hears them depends on whether it is there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = world.dice("operator")

    def plan(self) -> None:
        world, dice = self._world, self._dice
        for number in range(dice.choice(world.RUNS)):
            world.at(dice.choice([0.0, dice.uniform(0.0, world.calm * 0.6)]), self._submit, number)
        kinds: list[Any] = [self._cancel, self._retry, self._drain, self._capacity, self._limit, self._assign]
        kinds += [self._recall, self._revoke]
        for _ in range(dice.choice([0, 0, 1, 3, 6])):
            world.at(dice.uniform(1.0, world.calm), dice.choice(kinds))

    def _submit(self, number: int) -> None:
        dice, world = self._dice, self._world
        task_type = dice.choice(["sim", "sim", "sim", "sim_finds"])
        count = dice.choice(world.COUNTS) if task_type == "sim" else dice.choice([1, 2])
        items = [f"r{number}-{index}" for index in range(count)]
        work: dict[str, Any] = {
            "type": task_type,
            "items": items,
            "params": {"rows": world.rows},
            "shard_size": dice.choice([0, 0, 1, 2, 4]),
            "timeout": world.timeout,
            "max_attempts": dice.choice([1, 2, 3]),
            "backoff": dice.choice([0.0, 0.5, 2.0]),
            "priority": dice.choice([1, 5, 9]),
            "balancer": dice.choice(["most_free", "round_robin", "earliest_finish", "random"]),
            "idempotency_key": f"run-{number}",
        }

        heard: list[int] = []
        server = world.asked(number)

        def submit() -> None:
            """A program tries again until it is heard; the key makes that one run."""
            if not heard:
                server.do(f"submit {number}", lambda: heard.append(lifecycle.submit(**work).pk))

        submit()
        for seconds in (dice.uniform(0.1, 3.0), 15.0):
            world.after(seconds, submit)
        world.at(world.calm + 1.0, submit)

    def _some_child(self) -> Any:
        return self._dice.choice(list(self._world.children.values()))

    def _some_run(self) -> int:
        return self._dice.choice([1, 1, 2, 3])

    def _cancel(self) -> None:
        run = self._some_run()
        if self._dice.random() < 0.5:
            self._world.parent.do(f"cancel {run}", lambda: lifecycle.cancel(run).state)

    def _retry(self) -> None:
        run = self._some_run()
        self._world.parent.do(f"retry {run}", lambda: lifecycle.retry(run))

    def _drain(self) -> None:
        child = self._some_child()
        above, node = child.above, child.node
        above.do(f"drain {child.name}", lambda: registry.drain(node).draining)
        self._world.after(
            self._dice.uniform(1.0, 30.0),
            above.do,
            f"resume {child.name}",
            lambda: registry.resume(node).draining,
        )

    def _capacity(self) -> None:
        child, capacity = self._some_child(), self._dice.choice([1, 2, 3, 4])
        node = child.node
        child.above.do(
            f"{child.name} has {capacity} slots",
            lambda: registry.update_node(node, capacity=capacity, quotas=[]).capacity,
        )

    def _limit(self) -> None:
        child, limit = self._some_child(), self._dice.choice([0, 1, 2])
        specs = [QuotaSpec("sim", slots=min(limit, 1), limit=limit)]
        node = child.node
        child.above.do(f"{child.name} has limit {limit}", lambda: registry.set_quotas(node, specs))

    def _assign(self) -> None:
        run, child = self._some_run(), self._some_child()
        node = child.node
        child.above.do(f"assign {run} to {child.name}", lambda: queue.assign(run, node))

    def _recall(self) -> None:
        child = self._some_child()
        node = child.node
        child.above.do(f"recall from {child.name}", lambda: len(lifecycle.recall([node], "recalled by an operator")))

    def _revoke(self) -> None:
        """The key, and mostly there is a new one a while later."""
        child = self._some_child()

        above, node, access_key = child.above, child.node, child.caller.access_key

        def revoke() -> str:
            keys.revoke(access_key)
            return "done"

        def issue() -> str:
            live = AccessKey.objects.filter(node=node, revoked_at=None).exists()
            if live or child.above is not above:
                return "it has one"
            child.has_key(keys.issue(node))
            child.kill()
            child.start()
            return "issued"

        above.do(f"revoke the key of {child.name}", revoke)
        if self._dice.random() < 0.7:
            self._world.after(self._dice.uniform(1.0, 40.0), above.do, f"key for {child.name}", issue)

    def make_good(self) -> None:
        """Nothing keeps a run from ending any more: nobody drains, and there are no limits."""

        def free() -> int:
            for node in Node.objects.filter(Q(draining=True) | Q(quotas__isnull=False)).distinct():
                registry.update_node(node.pk, quotas=[], draining=False)
            return Run.objects.count()

        for server in self._world.servers:
            server.do("everything is allowed again", free)
