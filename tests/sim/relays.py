"""Relays: a parent below and a line to the one above, in one process, as ``cascade.roles`` starts them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dispatch.relay.upward import Upward
from tests.sim.children import Below
from tests.sim.parent import Parent

if TYPE_CHECKING:
    from tests.sim.world import World


class SimulatedUpward(Upward):
    """Its configuration is nothing to a world."""

    def _synced(self) -> None:
        return None


class Relay(Parent, Below):
    """A server that is the child of another one."""

    KIND = "relay"
    CAPACITIES = (1, 2, 3, 4)

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.upward: Upward | None = None

    def start(self) -> None:
        if not self.gone:
            super().start()

    def _boot(self) -> None:
        super()._boot()
        process = self.process
        self.upward = SimulatedUpward(self._config, "sim", line=self.line)
        running = process.loop.create_task(self.upward._main())

        def ended(_: Any) -> None:
            error = None if running.cancelled() else running.exception()
            self._world.note(f"the line of {self.name} has ended{': ' if error else ''}{error or ''}")
            if self.process is process:
                self.kill()
                if self._world.now > self._world.calm and not self.gone:
                    # Told to stop before, and not over yet when all were started again.
                    self._world.after(1.0, self.start)

        running.add_done_callback(ended)

    def stop(self) -> None:
        """SIGTERM: the line above first, then the rest, of which what is not written down is nothing."""
        if self.alive and self.upward is not None:
            self._world.note(f"{self.name} is asked to stop")
            self.process.call(partial(self._stop, self.upward))

    def _stop(self, upward: Upward) -> None:
        upward._stopping = True
        if upward._loop is not None:
            upward._ended.set()
