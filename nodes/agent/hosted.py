"""An agent inside another process (``manage.py runserver --role child``): its thread and its loop."""

from __future__ import annotations

import asyncio
import logging
import threading

from nodes.agent.carriers import MakeLine
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent

logger = logging.getLogger(__name__)

agent: Agent | None = None
"""The one in this process."""


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
        self._thread.start()
        self._up.wait(10)

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
            logger.exception("the agent ended")
        finally:
            self._up.set()

    async def _main(self) -> None:
        global agent
        self._loop = asyncio.get_running_loop()
        agent = Agent(self._config, self._version, line=self._line)
        self._up.set()
        await agent.run()
