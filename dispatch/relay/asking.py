"""Questions down the tree: what hangs below a relay, in full, when somebody wants to know.

It is the relay that keeps the line open, so a question waits in the database (``Question``) until the relay's socket,
claim or beat takes it along, and its answer is the verb ``tell``. Whoever asked looks for it there, in whichever
process of this server that is. What is further down is asked by the relay in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from dispatch import events
from dispatch.models import Question
from dispatch.relay import subtree
from nodes import keys, registry
from nodes.keys import Caller
from nodes.messages import Told
from nodes.models import Node
from nodes.protocol import NoAnswer, NotFound, TooMany
from nodes.transactions import retried, write

WITHIN = 6.0
"""Seconds that the root waits for an answer, however deep it comes from."""
HOP_SECONDS = 0.5
"""So much less each relay waits for the one below it, so that it can still say that this one did not answer."""
FIRST_LOOK, LONGEST_LOOK = 0.02, 0.2
OPEN_LIMIT = 50
"""Questions to one relay at a time."""
KEPT = timedelta(minutes=1)
"""A question whose asker has vanished is removed then."""

Picture = dict[str, Any]
InThread = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments in a thread that may use the database."""


async def ask(run: InThread, node_id: int, path: Sequence[str], within: float = WITHIN) -> Picture:
    """What hangs below the relay ``node_id``, or below the one that ``path`` (names) leads to from there; the form is
    that of ``subtree.in_full``. Of a relay that is not there it is what it said last.

    Raises NotFound for what is no relay or not there, NoAnswer where one on the way does not answer in ``within``
    seconds, TooMany.
    """
    asked = await run(_begin, node_id, list(path), within)
    if not isinstance(asked, Question):
        return dict(asked)
    loop = asyncio.get_running_loop()
    until, wait = loop.time() + within, FIRST_LOOK
    try:
        while loop.time() < until:
            await asyncio.sleep(wait)
            if (answer := await run(_answer, asked.pk)) is not None:
                return dict(answer)
            wait = min(1.5 * wait, LONGEST_LOOK)
    finally:
        await run(_forget, asked.pk)
    raise NoAnswer(f"{asked.node.name} does not answer: asked {within:g} s ago what hangs below it")


async def answer(run: InThread, path: Sequence[str], within: float) -> Picture:
    """What this server says to a question. Raises as ``ask``."""
    if not path:
        return dict(await run(subtree.in_full))
    try:
        node = await run(registry.find_node, path[0])
    except NotFound as error:
        raise NotFound(f"below {settings.CASCADE.called}: {error}") from None
    return await ask(run, node.pk, path[1:], within - HOP_SECONDS)


@retried
def _begin(node_id: int, path: list[str], within: float) -> Question | Picture:
    """The question as it is noted; or the answer, where the relay cannot be asked."""
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        raise NotFound(f"there is no node {node_id}")
    if node.role != Node.Role.RELAY:
        raise NotFound(f"{node.name} is no relay: nothing hangs below it")
    now = timezone.now()
    if not registry.is_online(node, now):
        if path:
            heard = registry.ago(node.last_beat_at, now)
            raise NoAnswer(f"{node.name} is {registry.state_of(node, now)}, heard of {heard}: {path[0]} is below it")
        return subtree.kept(node, now)
    if within <= 0:
        raise NoAnswer(f"there was no time left to ask {node.name}")
    with write():
        Question.objects.filter(asked_at__lt=now - KEPT).delete()
        if Question.objects.filter(node=node).count() >= OPEN_LIMIT:
            raise TooMany(f"{node.name} is being asked {OPEN_LIMIT} questions already", retry_after=1)
        asked = Question.objects.create(node=node, path=path, within=within, asked_at=now)
    events.tell([node.pk], {"type": "node.ask"})
    return asked


def _answer(question: int) -> Picture | None:
    """None: not yet."""
    found = Question.objects.filter(pk=question).exclude(answered_at=None).first()
    if found is None:
        return None
    if found.status == NotFound.status:
        raise NotFound(str(found.body))
    if found.status != 200:
        raise NoAnswer(str(found.body))
    return dict(found.body or {})


@retried
def _forget(question: int) -> None:
    with write():
        Question.objects.filter(pk=question).delete()


@retried
def take(node_id: int) -> list[dict[str, Any]]:
    """What this relay is to be asked now, as it travels; each question once, however many ways lead there."""
    waiting = Question.objects.filter(node=node_id, sent_at=None, answered_at=None).order_by("pk")
    if not (found := list(waiting)):
        return []
    with write():
        now = timezone.now()
        mine = [each for each in found if Question.objects.filter(pk=each.pk, sent_at=None).update(sent_at=now)]
    return [{"id": each.pk, "path": each.path, "within": each.within} for each in mine]


@retried
def told(caller: Caller, answers: Sequence[Told]) -> dict[str, Any]:
    """The relay's answers. Those to questions that were not its own, or are over, are nobody's."""
    now = timezone.now()
    taken = []
    with write():
        node = keys.check_live(caller)
        for each in answers:
            mine = Question.objects.filter(pk=each.id, node=node, answered_at=None)
            body = each.body if each.status == 200 else each.detail
            if mine.update(status=each.status, body=body, answered_at=now):
                taken.append(each.id)
    return {"taken": taken}
