"""``python -m nodes.agent --rotate``: the child makes itself a new key, and the old one signs for it.

The secret is made here and stays here: the parent gets the public half only. What is on disk is whole at every moment,
and a key in it is valid at every moment:

1. the new secret is written beside the key file (``….next``);
2. the parent is asked, signed by the old key, to accept its public half; asked again it gives the same answer;
3. the key file is replaced by one with the new pair; both keys are valid;
4. the parent is asked, signed by the new key, to end the older ones; ``….next`` is removed.

A crash before 3 leaves the old key in the file, a crash after it the new one; the next call goes on from there. An
agent that runs meanwhile reads the file again when its key is refused.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from nodes import failpoints, signing
from nodes.agent.carriers import Refused, Rest
from nodes.agent.clock import ParentClock
from nodes.agent.config import AgentConfig
from nodes.protocol import FieldError


def rotate(config: AgentConfig) -> str:
    """The new access key. Raises FieldError where the keys are not in a file, Refused, Unreachable, OSError."""
    if not config.key_file:
        raise FieldError("key_file", "is needed: only a key in a file can be replaced")
    return asyncio.run(_rotated(config, Path(config.key_file)))


async def _rotated(config: AgentConfig, file: Path) -> str:
    clock = ParentClock()
    waiting = file.with_name(f"{file.name}.next")
    secret_key = waiting.read_text().strip() if waiting.exists() else ""
    if secret_key != config.secret_key:
        secret_key = secret_key or _new_secret(waiting)
        access_key = await _accepted(config, clock, signing.public_key_of(secret_key))
        failpoints.reach("rotate.accepted")
        write_whole(file, f"{access_key}\n{secret_key}\n{config.first_key or config.access_key}\n")
        failpoints.reach("rotate.replaced")
        config = replace(config, access_key=access_key, secret_key=secret_key)
    await Rest(config, clock).call("retire", {})
    waiting.unlink(missing_ok=True)
    return config.access_key


async def _accepted(config: AgentConfig, clock: ParentClock, public_key: str) -> str:
    rest = Rest(config, clock)
    try:
        answer = await rest.call("rotate", {"public_key": public_key})
    except Refused as error:
        if error.status != HTTPStatus.CONFLICT:
            raise
        # An older key is in use still, of a change-over that never came to its end.
        await rest.call("retire", {})
        answer = await rest.call("rotate", {"public_key": public_key})
    return str(answer["access_key"])


def _new_secret(file: Path) -> str:
    _, secret_key, _ = signing.new_key()
    write_whole(file, secret_key)
    return secret_key


def write_whole(file: Path, text: str) -> None:
    """``text`` in ``file``, readable by its owner only; after a crash it is what was there before, or this."""
    part = file.with_name(f"{file.name}.part")
    with suppress(FileNotFoundError):
        part.unlink()
    with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
