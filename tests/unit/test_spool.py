"""Segments on disk: whole or not at all, named by what they hold."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatch.results import spool
from nodes.protocol import FieldError, StorageFull, TooLarge

CONTENT = os.urandom(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def chunks(content: bytes = CONTENT, size: int = 999) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "spool"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_segment_is_named_by_its_bytes(folder: Path) -> None:
    assert spool.receive(chunks(), folder, limit=100_000) == spool.Segment(SHA256, 100_000)
    assert names(folder) == [f"{SHA256}.arrow"]
    assert spool.path(folder, SHA256).read_bytes() == CONTENT
    assert spool.verify(folder, SHA256)


def test_a_segment_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    did: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        did.append("folder synced" if name == str(folder) else f"{Path(name).suffix} synced")
        fsync(handle)

    def named(source: Path, target: Path) -> None:
        did.append("named")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    spool.receive(chunks(), folder, limit=100_000)
    assert did == [".part synced", "named", "folder synced"]


def test_the_same_segment_twice_is_one_file_with_the_same_answer(folder: Path) -> None:
    first = spool.receive(chunks(), folder, limit=100_000)
    assert spool.receive(chunks(size=7), folder, limit=100_000) == first
    assert names(folder) == [f"{SHA256}.arrow"]


def test_a_damaged_segment_is_healed_by_its_repetition(folder: Path) -> None:
    spool.receive(chunks(), folder, limit=100_000)
    spool.path(folder, SHA256).write_bytes(CONTENT[:-1])
    assert not spool.verify(folder, SHA256)
    spool.receive(chunks(), folder, limit=100_000)
    assert spool.verify(folder, SHA256)


def test_senders_of_the_same_segment_at_once_do_not_meet(folder: Path) -> None:
    answers: list[spool.Segment] = []
    start = threading.Barrier(8)

    def send() -> None:
        start.wait()
        answers.append(spool.receive(chunks(), folder, limit=100_000))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [spool.Segment(SHA256, 100_000)] * 8
    assert names(folder) == [f"{SHA256}.arrow"]


def test_too_large_a_segment_is_refused_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(TooLarge, match="99999 bytes") as caught:
        spool.receive(chunks(), folder, limit=99_999)
    assert caught.value.status == 413
    assert names(folder) == []


def test_an_upload_that_breaks_off_leaves_nothing(folder: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise ConnectionResetError("the child is gone")

    with pytest.raises(ConnectionResetError):
        spool.receive(broken(), folder, limit=100_000)
    assert names(folder) == []


def test_a_disk_without_room_is_507_leaves_nothing_and_heals(folder: Path) -> None:
    """A limit on the size of files stands for the full disk: the system refuses the write in the middle of a chunk."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from dispatch.results import spool\n"
        "from nodes.protocol import StorageFull\n"
        "folder = Path(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    spool.receive([bytes(80_000)], folder, limit=100_000)\n"
        "except StorageFull as error:\n"
        "    print(error.status, sorted(entry.name for entry in folder.iterdir()))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(spool.verify(folder, spool.receive([bytes(80_000)], folder, limit=100_000).sha256))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["507 []", "True"]


def test_the_systems_no_space_left_is_507() -> None:
    with pytest.raises(StorageFull, match="No space left"), spool.storage(), open("/dev/full", "wb", 0) as full:
        full.write(b"x")


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        spool.receive(chunks(), tmp_path / "file" / "spool", limit=100_000)


@pytest.mark.parametrize("position", [0, 50_000, 99_999])
def test_a_flipped_bit_is_found(folder: Path, position: int) -> None:
    spool.receive(chunks(), folder, limit=100_000)
    damaged = bytearray(CONTENT)
    damaged[position] ^= 1
    spool.path(folder, SHA256).write_bytes(damaged)
    assert not spool.verify(folder, SHA256)


def test_a_missing_segment_is_not_whole(folder: Path) -> None:
    assert not spool.verify(folder, SHA256)


@pytest.mark.parametrize(
    "sha256",
    ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "../" + "0" * 61, "0" * 64 + "\n", "é" * 64, None, 7, b"0" * 64],
)
def test_what_is_no_hash_names_no_file(folder: Path, sha256: str) -> None:
    for verb in (spool.path, spool.verify, spool.quarantine, spool.remove):
        with pytest.raises(FieldError, match="is not a SHA-256") as caught:
            verb(folder, sha256)
        assert caught.value.field == "segment"


def test_quarantine_keeps_the_damaged_bytes_out_of_the_way(folder: Path) -> None:
    spool.receive(chunks(), folder, limit=100_000)
    spool.path(folder, SHA256).write_bytes(b"damaged")
    aside = spool.quarantine(folder, SHA256)
    assert aside is not None
    assert aside.read_bytes() == b"damaged"
    assert names(folder) == ["quarantine"]
    assert spool.quarantine(folder, SHA256) is None


def test_removing_is_repeatable(folder: Path) -> None:
    spool.receive(chunks(), folder, limit=100_000)
    spool.remove(folder, SHA256)
    spool.remove(folder, SHA256)
    assert names(folder) == []


def test_a_sweep_takes_only_what_is_old_and_nobody_names(folder: Path) -> None:
    now = time.time()
    kept, old, fresh = (spool.receive([text], folder, limit=10).sha256 for text in (b"kept", b"old", b"fresh"))
    (folder / "left.part").write_bytes(b"by a crash")
    (folder / "going.part").write_bytes(b"on")
    (folder / "notes.txt").write_bytes(b"somebody's")
    aside = spool.quarantine(folder, spool.receive([b"bad"], folder, limit=10).sha256)
    assert aside is not None
    for file in (spool.path(folder, kept), spool.path(folder, old), folder / "left.part", folder / "notes.txt", aside):
        os.utime(file, (now - 7200, now - 7200))

    assert spool.sweep(folder, {kept}, 3600, now=now) == 2
    expected = [f"{kept}.arrow", f"{fresh}.arrow", "going.part", "notes.txt", "quarantine"]
    assert names(folder) == sorted(expected)
    assert aside.exists()
    assert spool.sweep(folder, set(), 3600, now=now + 7200) == 3


def test_a_segment_sent_again_is_young_again(folder: Path) -> None:
    """Or a sweep could take it between its upload and the report that names it."""
    spool.receive(chunks(), folder, limit=100_000)
    now = time.time()
    os.utime(spool.path(folder, SHA256), (now - 7200, now - 7200))
    spool.receive(chunks(), folder, limit=100_000)
    assert spool.sweep(folder, set(), 3600, now=now) == 0
    assert spool.verify(folder, SHA256)


def test_a_sweep_waits_for_an_upload_that_is_being_named(folder: Path) -> None:
    """It looks at the date and removes in one go, or the same segment received in between would be gone."""
    spool.receive(chunks(), folder, limit=100_000)
    now = time.time()
    os.utime(spool.path(folder, SHA256), (now - 7200, now - 7200))
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    sweep = threading.Thread(target=spool.sweep, args=(folder, set(), 3600))
    sweep.start()
    sweep.join(timeout=0.3)
    assert sweep.is_alive()
    os.utime(spool.path(folder, SHA256))
    os.close(handle)
    sweep.join()
    assert spool.verify(folder, SHA256)


def test_sweeping_before_anything_was_received_is_fine(folder: Path) -> None:
    assert spool.sweep(folder, set(), 3600) == 0
