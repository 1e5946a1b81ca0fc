"""What runs in this process beside the server: by role, which loops. Joins the floors; decides nothing else."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Protocol

from django.conf import settings

from cascade import __version__

logger = logging.getLogger(__name__)


class Loop(Protocol):
    """Something with a thread of its own."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def loops(options: Namespace) -> list[Loop]:
    """The loops of this process' role, in the order in which they start; they stop in the reverse order.

    Raises FieldError for an agent's configuration that cannot work.
    """
    if settings.CASCADE.role == "child":
        from nodes.agent.config import load
        from nodes.agent.hosted import HostedAgent

        return [HostedAgent(load(options, served=True), __version__)]
    from dispatch.advising import Advisor
    from dispatch.configuration import Configuration
    from dispatch.dispatcher import Dispatcher
    from dispatch.driving import Driver
    from dispatch.results.reducing import Reducer
    from dispatch.results.saver import Saver
    from dispatch.webhooks import Webhooks

    # The saver first: what a crash left in the spool is saved before new results come.
    started: list[Loop] = [Saver(), Reducer(), Advisor(), Configuration(), Webhooks(), Dispatcher(), Driver()]
    if settings.CASCADE.fallback_workers:
        from cascade.embedded import OwnWorker

        started.append(OwnWorker(settings.CASCADE.fallback_workers))
    return started
