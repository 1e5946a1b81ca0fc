"""Every setting of the agent: from arguments, else the environment, else the default.

Keys never come from arguments, which every user of a machine can read in its process list.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nodes.protocol import FieldError

_ACCESS_KEY = re.compile(r"\ACN[0-9a-zA-Z]{8,38}\Z")
_SECRET_KEY = re.compile(r"\ACS[0-9A-Za-z_-]{43}\Z")
CARRIERS = ("auto", "push", "pull")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True)
class AgentConfig:
    """``parent`` is its base URL; ``carrier`` one of auto (push while it works, else pull), push, pull."""

    parent: str
    access_key: str
    secret_key: str
    carrier: str = "auto"
    data_dir: Path = Path("agent")
    drain_seconds: float = 20.0
    """How long a stop waits for running shards before it hands them back."""
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if not _is_address(self.parent):
            raise FieldError("parent", f"{self.parent!r} is not an address like http://parent.example:8000")
        if not _ACCESS_KEY.match(self.access_key):
            raise FieldError("access_key", f"{self.access_key!r} is not an access key, which starts with CN")
        if not _SECRET_KEY.match(self.secret_key):
            # Never shown, not even when it is wrong: it may be the right one with a slip.
            raise FieldError("secret_key", "is not a secret key, which is CS and 43 characters more")
        if self.carrier not in CARRIERS:
            raise FieldError("carrier", f"{self.carrier!r} is not one of: {', '.join(CARRIERS)}")
        if not 0 <= self.drain_seconds <= 86_400:
            raise FieldError("drain_seconds", f"{self.drain_seconds} is not between 0 and 86400")
        if self.log_level not in LEVELS:
            raise FieldError("log_level", f"{self.log_level!r} is not one of: {', '.join(LEVELS)}")

    def __repr__(self) -> str:
        return f"AgentConfig(parent={self.parent!r}, access_key={self.access_key!r}, carrier={self.carrier!r})"


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        # The port is read when it is asked for, and may be wrong, too.
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        return False
    return bool(good) and "@" not in url.netloc and not url.query and not url.fragment and text.isprintable()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the agent's arguments; ``manage.py runserver --role child`` takes the same."""
    parser.add_argument("--parent", help="the parent's address, like http://127.0.0.1:8000 (CASCADE_PARENT)")
    parser.add_argument("--carrier", choices=CARRIERS, help="how work comes (CASCADE_CARRIER; default auto)")
    parser.add_argument("--key-file", help="file with access key and secret key, one a line (CASCADE_KEY_FILE)")
    parser.add_argument("--data-dir", help="where finished work waits for its receipt (CASCADE_AGENT_DIR)")
    parser.add_argument("--drain-seconds", type=float, help="how long a stop waits for running shards (default 20)")


def load(options: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> AgentConfig:
    """Raises FieldError naming what is missing or wrong."""

    def given(name: str, variable: str) -> str | None:
        return getattr(options, name, None) or environ.get(variable)

    parent = given("parent", "CASCADE_PARENT")
    if not parent:
        raise FieldError("parent", "is required: --parent http://… or CASCADE_PARENT")
    access_key, secret_key = _keys(given("key_file", "CASCADE_KEY_FILE"), environ)
    folder = given("data_dir", "CASCADE_AGENT_DIR") or Path.home() / ".cascade" / access_key
    drain = getattr(options, "drain_seconds", None)
    return AgentConfig(
        parent=parent.rstrip("/"),
        access_key=access_key,
        secret_key=secret_key,
        carrier=given("carrier", "CASCADE_CARRIER") or "auto",
        data_dir=Path(folder).expanduser().resolve(),
        drain_seconds=20.0 if drain is None else drain,
        log_level=environ.get("CASCADE_LOG_LEVEL", "INFO"),
    )


def _keys(file: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    if file is None:
        try:
            return environ["CASCADE_ACCESS_KEY"], environ["CASCADE_SECRET_KEY"]
        except KeyError as missing:
            raise FieldError(
                missing.args[0], "is not set; `manage.py node add NAME` on the parent prints both keys"
            ) from None
    path = Path(file).expanduser()
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise FieldError("key_file", f"{path} can be read by others; run: chmod 600 {path}")
        lines = path.read_text().split()
    except OSError as error:
        raise FieldError("key_file", f"{path}: {error.strerror}") from None
    if len(lines) != 2:
        raise FieldError("key_file", f"{path} must hold the access key and the secret key, one a line")
    return lines[0], lines[1]


def parse(argv: Sequence[str] | None = None) -> AgentConfig:
    """The configuration of ``python -m nodes.agent``."""
    parser = argparse.ArgumentParser(prog="python -m nodes.agent", description="Takes work from a Cascade parent.")
    arguments(parser)
    return load(parser.parse_args(argv))
