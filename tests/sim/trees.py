"""Worlds with relays: trees two to four levels deep below their root, with every fault at each of their nodes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dispatch import configuration, dispatcher
from dispatch.relay import upward
from dispatch.results import saver
from nodes import identity, keys, registry
from tests.sim import environment
from tests.sim.children import Child
from tests.sim.faults import Faults
from tests.sim.machine import Machine
from tests.sim.parent import Parent
from tests.sim.relay_promises import RelayPromises
from tests.sim.relays import Relay
from tests.sim.store import MemoryStore
from tests.sim.world import World

DEPTHS = (2, 2, 2, 2, 2, 2, 3, 3, 4)
"""Levels below the root, the leaves' among them."""


class Tree(World):
    """A root, relays below it, and leaves."""

    KIND = "t"
    ROOT = "root"
    CALM = (14.0, 20.0, 28.0)
    # A root hears of what is below with a beat of each level.
    BEATS = (3.0, 4.0, 6.0)
    STARTED = 1.0
    COUNTS = (4, 6, 8, 12)
    RUNS = (1, 1, 1, 2)
    SECONDS = (0.3, 1.0, 1.5)

    def __init__(self, seed: int, tell: Any = None) -> None:
        super().__init__(seed, tell)
        self.faults = Moves(self)
        self.by_id: dict[str, Parent] = {}
        """Servers by what they call themselves."""

    def _people(self, dice: random.Random) -> None:
        depth = dice.choice(DEPTHS)
        above: list[Parent] = [self.parent]
        for level in range(1, depth):
            here: list[Parent] = []
            for number in range(dice.choice([1, 1, 1, 2]) if level < 3 else 1):
                relay = Relay(self, f"relay-{level}{number}")
                self._add_relay(relay, dice.choice(above), dice)
                here.append(relay)
            above = [*here]
        for number, server in enumerate(above):
            for each in range(dice.choice([1, 1, 2])):
                self._add_child(Child(self, f"leaf-{number}{each}"), server, dice)
        for server in self.servers:
            if server not in above and dice.random() < 0.15:
                self._add_child(Child(self, f"leaf-of-{server.name}"), server, dice)

    def _add_relay(self, relay: Relay, above: Parent, dice: random.Random) -> None:
        settled = self.parent.machine.settled.model_copy(update={"role": "relay"})
        self._set_up(relay, Machine(relay, environment.fresh(), settled), self._folder / relay.name, dice)
        relay.promises = RelayPromises(self, relay)
        relay.store = MemoryStore()
        self.servers.append(relay)
        self._add_child(relay, above, dice)

    def _set_up(self, server: Parent, machine: Machine, folder: Path, dice: random.Random) -> None:
        super()._set_up(server, machine, folder, dice)
        machine.settled.node_name = server.name
        # Production makes it by chance.
        made = hashlib.md5(f"{self.seed}/{server.name}".encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / identity.FILE).write_text(made)
        self.by_id[made] = server

    def _set_pace(self, dice: random.Random) -> None:
        super()._set_pace(dice)
        # There are several servers, and what each of them does in vain is most of the cost.
        dispatcher.PASS_SECONDS = dice.choice([6.0, 10.0])
        dispatcher.GATHER_SECONDS = dispatcher.UNHURRIED_SECONDS
        saver.IDLE_SECONDS = dice.choice([6.0, 10.0])
        upward.LOOK_SECONDS = upward.WATCH_SECONDS = upward.INPUT_LOOK_SECONDS = 6.0
        # Nothing here has a schedule, or sources.
        dispatcher.FIRE_SECONDS = configuration.LOOK_SECONDS = 1e9

    def _make_peace(self) -> None:
        for server in self.servers[1:]:
            server.process.frozen_until = 0.0
        super()._make_peace()

    def _host(self, dice: random.Random) -> Parent:
        connected = list(self._connected())
        return connected[-1] if dice.random() < 0.5 else dice.choice(connected)

    def _connected(self) -> Iterator[Parent]:
        found = [self.parent]
        for server in found:
            yield server
            heard = server.promises.keyed()
            for child in self.children.values():
                if isinstance(child, Relay) and child.above is server and not child.gone and child.name in heard:
                    found.append(child)


class Moves(Faults):
    """What else goes wrong in a tree."""

    NUMBERS = (3, 5, 7)
    FIRST = 5.0

    def __init__(self, world: World) -> None:
        super().__init__(world)
        dice = world.dice("relays' faults")
        if dice.random() < 0.5:
            self._hot[dice.choice(["relay.taken", "relay.numbered", "relay.passed"])] = dice.choice([0.1, 0.3, 0.6])

    def _more(self) -> list[Any]:
        return [self._move, self._move, self._move, self._kill_relay, self._kill_relay, self._island]

    def _some_relay(self) -> Relay:
        return self._dice.choice([each for each in self._world.children.values() if isinstance(each, Relay)])

    def _kill_relay(self) -> None:
        relay = self._some_relay()
        if relay.alive and self._may_crash(relay):
            self._count("relay killed", f"{relay.name} is hit")
            relay.kill(torn=self._torn)
            self._plan_return(relay)

    def _island(self) -> None:
        relay = self._some_relay()
        seconds = self._dice.uniform(40.0, 150.0)
        self._count("island", f"{relay.name} is cut off from {relay.above.name} for {seconds:.1f} s")
        self._world.network.partition(relay.name, ["up", "down"], self._world.now + seconds)

    def _jump(self) -> None:
        server = self._dice.choice(self._world.servers)
        self._count("clock jump", "")
        server.jump(self._dice.choice([-600.0, -20.0, 20.0, 600.0, 86_400.0]))

    def _move(self) -> None:
        """A leaf, or a relay with all that is below it, gets a key of another server, and starts again with that."""
        child = self._dice.choice(list(self._world.children.values()))
        there = [each for each in self._world.servers if each is not child.above and not self._is_below(each, child)]
        if not there or child.gone:
            return
        above = self._dice.choice(there)

        def move() -> str:
            node = self._known(above, child.name)
            if node is None:
                made, key = registry.add_node(child.name, capacity=self._dice.choice([1, 2, 3]))
                node = made.pk
            else:
                keys.revoke_all(node)
                key = keys.issue(node)
            child.kill()
            child.moves(above, node, key)
            child.start()
            return f"now below {above.name}"

        self._count("moved", f"{child.name} moves to {above.name}")
        above.do(f"move {child.name}", move)

    def _known(self, server: Parent, name: str) -> int | None:
        row = server.machine.database.execute("SELECT id FROM nodes_node WHERE name = ?", [name]).fetchone()
        return None if row is None else row[0]

    def _is_below(self, server: Any, relay: Any) -> bool:
        while server is not relay and isinstance(server, Relay):
            server = server.above
        return server is relay
