"""Segments that are bombs, or damaged anywhere: refused with a reason, in a process with limits, at no cost to ours."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from dispatch.results import datasets, decoder, decoding
from nodes.protocol import CascadeError, TooLarge, Unprocessable
from tests.hostile import bombs
from tests.hostile.bombs import BOMBS, ECHO, MB, honest, mutations

MUTATIONS = 300
OURS = 40 * MB
"""What looking at a bomb may cost the process that asks: nothing, but memory is counted in pages and arenas."""


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def decoders() -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process().children()
        if each.status() != psutil.STATUS_ZOMBIE and "dispatch.results.decoder" in each.cmdline()
    ]


def peak(process: psutil.Process) -> int:
    """The most memory that it ever had, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "segment.arrow"


def test_an_honest_segment_is_counted_as_decoding_would(file: Path) -> None:
    file.write_bytes(honest(3000))
    assert decoding.rows(file, ECHO) == datasets.decode(file, ECHO).num_rows == 3000


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_costs_this_process_nothing(name: str, file: Path) -> None:
    file.write_bytes(honest())
    decoding.rows(file, ECHO)
    file.write_bytes(BOMBS[name]())
    before = resident()
    with pytest.raises(CascadeError) as refused:
        decoding.rows(file, ECHO)
    assert refused.value.status in (400, 413, 422)
    assert resident() - before < OURS
    assert all(peak(each) < decoder.MEMORY for each in decoders())


def test_what_is_damaged_anywhere_is_refused_or_gives_rows_and_never_ends_the_asking_process(file: Path) -> None:
    content = honest(40)
    refused: Counter[int] = Counter()
    seed = 7 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "big")
    for made in itertools.islice(mutations(content, seed), MUTATIONS):
        file.write_bytes(made)
        try:
            assert 0 <= decoding.rows(file, ECHO) <= 10_000_000
        except CascadeError as error:
            refused[error.status] += 1
    assert set(refused) <= {400, 413, 422}, f"seed {seed}"
    assert refused.total() > MUTATIONS / 2


def test_a_segment_that_its_process_does_not_survive_is_refused_and_the_next_one_is_served(file: Path) -> None:
    file.write_bytes(honest())
    endless = file.with_name("endless.arrow")
    os.mkfifo(endless)  # whoever opens it waits for a writer that never comes
    over = threading.Event()

    def end() -> None:
        while not over.wait(0.05):
            for each in decoders():
                each.kill()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        with pytest.raises(Unprocessable, match="more memory or time"):
            decoding.rows(endless, ECHO)
    finally:
        over.set()
        thread.join()
    assert decoding.rows(file, ECHO) == 3


def test_a_process_that_ended_while_nobody_asked_costs_nobody_a_segment(file: Path) -> None:
    file.write_bytes(honest())
    decoding.rows(file, ECHO)
    for each in decoders():
        each.kill()
        each.wait(10)
    assert decoding.rows(file, ECHO) == 3


def test_the_process_has_its_limits_and_none_of_our_secrets(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in decoders():
        each.kill()
        each.wait(10)
    monkeypatch.setenv("CASCADE_DJANGO_KEY", "a secret")
    file.write_bytes(honest())
    decoding.rows(file, ECHO)
    (process,) = decoders()
    limits = " ".join(Path(f"/proc/{process.pid}/limits").read_text().split())
    assert f"Max data size {decoder.MEMORY} {decoder.MEMORY}" in limits
    assert "Max file size 0 0" in limits
    assert "a secret" not in Path(f"/proc/{process.pid}/environ").read_text()


def test_a_batch_that_would_not_fit_its_process_is_refused_before_it_is_unpacked(file: Path) -> None:
    file.write_bytes(bombs.one_batch_of_zeros())
    with pytest.raises(TooLarge, match=r"at most|more than"):
        decoding.rows(file, ECHO)
