"""``python -m nodes.agent``: the agent alone, without Django."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from nodes import __version__
from nodes.agent.config import AgentConfig, parse
from nodes.agent.loop import Agent
from nodes.given import SettingsError
from nodes.protocol import CascadeError


async def _run(config: AgentConfig) -> None:
    agent = Agent(config, version=__version__)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if agent.stopping:
            # Asked twice: end at once. Workers see that their agent is gone and end, too.
            os._exit(1)
        agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await agent.run()


def _rotate(config: AgentConfig) -> str | None:
    """What went wrong, or None."""
    from nodes.agent.rotation import rotate

    try:
        access_key = rotate(config)
    except (CascadeError, OSError) as error:
        return f"error: {error}; the key in {config.key_file or 'use'} works as before, or the new one does: try again"
    print(f"{config.key_file} has the key {access_key} now; those before it are revoked")
    return None


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in ("run", "tasks"):
        from nodes.agent import offline

        sys.exit(offline.main(sys.argv[1:]))
    try:
        config = parse()
    except SettingsError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(message)s")
    for note in config.notes:
        logging.warning("%s", note)
    if "--rotate" in sys.argv[1:]:
        sys.exit(_rotate(config))
    try:
        asyncio.run(_run(config))
    except BlockingIOError:
        sys.exit(f"error: another agent uses {config.data_dir}; give this one another --data-dir")
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        sys.exit(f"error: data_dir: {error}")


if __name__ == "__main__":
    main()
