"""Backup and restore of a whole embedded parent as one file: what ``manage.py backup`` and ``restore`` do.

The file is a gzipped tar. Its first member, ``manifest.json``, has each other member's size and SHA-256; nothing is put
in place before all of them were found to be right. What fits together in it is in ``dispatch.backups``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.utils import timezone

from cascade import __version__, config, reach
from cascade.console import Unreachable
from dispatch import backups
from dispatch.results.opening import open_store
from nodes.protocol import Conflict, Unprocessable

FORMAT = 1
MANIFEST, SECRET, IDENTITY = "manifest.json", "secret_key", "node_id"
ANSWER_SECONDS = 3600.0
"""A large result store takes a while to be copied."""
IDS_APART = 10**9
"""So far behind the backup's last allocation the next one gets its id: those in between were given out after it, and
nodes may still report them."""
_NAMES = re.compile(
    r"cascade\.sqlite3|results\.duckdb(\.wal)?|secret_key|node_id|spool/[0-9a-f]{64}\.arrow|settings/[\w.-]+"
)
_PIECE = 1024 * 1024


class Damaged(Unprocessable):
    """The file is no backup, or not a whole one."""


class Made(NamedTuple):
    files: int
    size: int
    made_at: str
    version: str


# Backup


def backup(to: Path) -> Made:
    """Writes this parent to ``to``, readable by its owner alone. A server may run meanwhile.

    Raises Conflict where ``to`` is there already or the parent is no embedded one, Unreachable where the server that
    runs does not answer.
    """
    here = settings.CASCADE
    if here.database_url or here.in_lake:
        raise Conflict("this parent is in PostgreSQL, which has backups of its own: see docs/backup.md")
    if to.exists():
        raise Conflict(f"{to} is there already")
    if not here.database.exists():
        raise Conflict(f"there is no parent in {here.data_dir}")
    with _staging(here.data_dir, "backup-") as folder:
        if reach.server() is None:
            with open_store(writing=True) as store:
                backups.fill(folder, store)
        else:
            _have_filled(folder)
        _add_settings(folder)
        return _pack(folder, to)


@contextmanager
def _staging(data_dir: Path, prefix: str) -> Iterator[Path]:
    """A folder of our own in ``data_dir``, on the same disk as what goes into it or comes out of it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=data_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _have_filled(folder: Path) -> None:
    """The server, which holds the result store, fills ``folder``."""
    backups.ask(folder)
    done, until = folder / backups.DONE, time.monotonic() + ANSWER_SECONDS
    while not done.exists():
        if reach.server() is None or time.monotonic() > until:
            backups.wanted().unlink(missing_ok=True)
            raise Unreachable("the server that holds the results has not made its part of the backup; is it running?")
        time.sleep(0.05)
    problem = json.loads(done.read_text())["problem"]
    done.unlink()
    if problem:
        raise Unreachable(f"the server could not make its part of the backup: {problem}")


def _add_settings(folder: Path) -> None:
    file = config.current().found.file
    # With its id it is the same server to nodes that have results for it.
    for kept in (settings.CASCADE.data_dir / SECRET, settings.CASCADE.identity_folder / IDENTITY):
        if kept.exists():
            shutil.copyfile(kept, folder / kept.name)
    if file is not None and _NAMES.fullmatch(f"settings/{Path(file).name}"):
        (folder / "settings").mkdir()
        shutil.copyfile(file, folder / "settings" / Path(file).name)


def _pack(folder: Path, to: Path) -> Made:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    made_at = timezone.now().isoformat()
    about = {"format": FORMAT, "cascade": __version__, "made_at": made_at, "files": files}
    part = to.with_name(f".{to.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            with (
                gzip.GzipFile(fileobj=out, mode="wb", compresslevel=3, filename="") as zipped,
                tarfile.open(fileobj=zipped, mode="w|") as tar,
            ):
                _put(tar, MANIFEST, io.BytesIO(content := json.dumps(about, indent=1).encode()), len(content))
                for name in names:
                    with open(folder / name, "rb") as file:
                        _put(tar, name, file, (folder / name).stat().st_size)
            out.flush()
            os.fsync(out.fileno())
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)
    return Made(len(names), to.stat().st_size, made_at, __version__)


def _put(tar: tarfile.TarFile, name: str, content: Any, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    tar.addfile(member, content)


# Restore


def restore(file: Path, into: Path) -> Made:
    """Makes ``into``, which must be empty or not there, the data folder of the parent that ``file`` holds.

    Raises Damaged for a file that is not whole, and then leaves nothing; Conflict where something is in the way.
    """
    if not file.is_file():
        raise Conflict(f"there is no file {file}")
    _check_empty(into)
    into.mkdir(parents=True, exist_ok=True)
    with _staging(into, ".restoring-") as folder:
        about = _unpack(file, folder)
        _set_ids_apart(folder / backups.CONTROL)
        for path in (path for path in folder.rglob("*") if path.is_file()):
            with open(path, "rb") as written:
                os.fsync(written.fileno())
        # The control database last: without it there is no parent here, whatever happens now.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == backups.CONTROL):
            path.replace(into / path.name)
    return Made(len(about["files"]), file.stat().st_size, about["made_at"], about["cascade"])


def _check_empty(into: Path) -> None:
    if into.exists() and not into.is_dir():
        raise Conflict(f"{into} is no folder")
    # Any command makes a secret key in the data folder of its settings, this one, too.
    there = sorted(path.name for path in into.iterdir() if path.name != SECRET) if into.exists() else []
    if (into / "server.json").exists():
        raise Conflict(f"a server runs on {into}, or was killed there: restore into an empty folder")
    if there:
        raise Conflict(f"{into} is not empty, it has {', '.join(there[:5])}: restore into an empty folder")


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    """All of it, checked; returns the manifest."""
    try:
        with tarfile.open(file, "r|gz") as tar:
            members = iter(tar)
            first = next(members, None)
            if first is None or first.name != MANIFEST or first.size > 512 * _PIECE:
                raise Damaged(f"{file} is no backup of a parent")
            content = tar.extractfile(first)
            assert content is not None
            about: dict[str, Any] = json.loads(content.read())
            if about["format"] != FORMAT:
                raise Damaged(f"{file} has format {about['format']}; this version reads {FORMAT}")
            left = dict(about["files"])
            for member in members:
                said = left.pop(member.name, None)
                if said is None or not member.isfile() or not _NAMES.fullmatch(member.name):
                    raise Damaged(f"{file} has a {member.name!r} that its manifest does not know")
                _take(tar, member, folder / member.name)
                if member.size != said["size"] or _sha256(folder / member.name) != said["sha256"]:
                    raise Damaged(f"{file} is damaged: {member.name} is not what it was")
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Damaged(f"{file} is not whole: {error or type(error).__name__}") from error
    if left or backups.CONTROL not in about["files"]:
        raise Damaged(f"{file} is not whole: {', '.join(sorted(left)[:3]) or backups.CONTROL} is missing")
    return about


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None
    with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        shutil.copyfileobj(content, out, _PIECE)


def _set_ids_apart(control: Path) -> None:
    """An allocation's id is its fencing token, so none that was given out after the backup comes again."""
    with closing(sqlite3.connect(control)) as database, database:
        table = "dispatch_allocation"
        database.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ?", (IDS_APART, table))
        database.execute(
            "INSERT INTO sqlite_sequence (name, seq) SELECT ?, ? WHERE NOT EXISTS "
            "(SELECT 1 FROM sqlite_sequence WHERE name = ?)",
            (table, IDS_APART, table),
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
