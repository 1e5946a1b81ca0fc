"""An agent inside another process (``manage.py runserver --role child``): its thread and its loop."""

from __future__ import annotations

import asyncio
import logging
import threading

from nodes.agent.carriers import MakeLine
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent
from nodes.protocol import CascadeError

logger = logging.getLogger(__name__)

agent: Agent | None = None
"""The one in this process."""


class CannotBegin(CascadeError):
    """The agent's folder is another agent's, or cannot be used."""

    status = 503


class HostedAgent:
    """Runs an agent in a thread of its own, beside the server that answers for it."""

    def __init__(self, config: AgentConfig, version: str, *, line: MakeLine | None = None) -> None:
        self._config = config
        self._line = line
        self._version = version
        self._thread = threading.Thread(target=self._run, name="agent")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Returns when the agent has its folder. Raises CannotBegin."""
        self._thread.start()
        self._up.wait(10)
        folder = self._config.data_dir
        if isinstance(self.failure, BlockingIOError):
            raise CannotBegin(f"another agent uses {folder}; stop it, or give this server another data_dir")
        if isinstance(self.failure, OSError):
            raise CannotBegin(f"this server's agent cannot use its folder {folder}: {self.failure}")

    def stop(self) -> None:
        """Lets the agent finish or hand back, report, and end."""
        if self._loop is not None and agent is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(agent.stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.failure = error
            if self._up.is_set():
                logger.critical(
                    "this server's agent has ended, and runs nothing any more: start the server again", exc_info=error
                )
        finally:
            self._up.set()

    async def _main(self) -> None:
        global agent
        self._loop = asyncio.get_running_loop()
        agent = Agent(self._config, self._version, line=self._line)
        await agent.run(self._up.set)
