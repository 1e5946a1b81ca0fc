"""Finished work on the agent's disk until its receipt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.agent.outbox import Outbox

ROOT = Path(__file__).resolve().parents[2]
SEGMENT = "a" * 64
OTHER = "b" * 64


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "outbox")
    outbox.open()
    yield outbox
    outbox.close()


def entry(allocation: int, segment: str = "") -> dict:
    return {"allocation": allocation, "ranges": [[0, 1, 1]], **({"segment": segment} if segment else {})}


def again(outbox: Outbox) -> Outbox:
    """As a restarted agent finds it."""
    outbox.close()
    fresh = Outbox(outbox.folder)
    fresh.open()
    return fresh


def files(outbox: Outbox) -> set[str]:
    return {file.name for file in outbox.folder.iterdir()} - {"lock"}


def written(outbox: Outbox, segment: str) -> Path:
    outbox.segment(segment).write_bytes(b"rows")
    return outbox.segment(segment)


def test_what_was_put_is_there_after_a_restart_in_the_same_order(outbox):
    outbox.put([entry(3), entry(1)])
    outbox.put([entry(2)])
    fresh = again(outbox)
    assert fresh.waiting(10) == [entry(3), entry(1), entry(2)]
    assert fresh.allocations() == [3, 1, 2]
    assert len(fresh) == 3
    assert 1 in fresh
    assert 4 not in fresh


def test_eleven_batches_keep_their_order_over_a_restart(outbox):
    for allocation in range(11):
        outbox.put([entry(allocation)])
    assert again(outbox).allocations() == list(range(11))


def test_what_has_its_receipt_is_gone_after_a_restart_too(outbox):
    outbox.put([entry(1)])
    outbox.put([entry(2)])
    outbox.drop([1])
    assert outbox.allocations() == [2]
    assert again(outbox).allocations() == [2]


def test_a_batch_stays_on_disk_until_its_last_receipt_and_repeats_the_others_after_a_restart(outbox):
    outbox.put([entry(1), entry(2)])
    outbox.drop([1])
    assert outbox.waiting(10) == [entry(2)]
    # Reported again, the parent answers with the receipt it gave; that is cheaper than to write the file anew.
    fresh = again(outbox)
    assert fresh.allocations() == [1, 2]
    fresh.drop([1, 2])
    assert files(fresh) == set()


def test_nothing_is_left_on_disk_when_all_have_their_receipt(outbox):
    written(outbox, SEGMENT)
    outbox.put([entry(1, SEGMENT), entry(2)])
    outbox.drop([1, 2, 99])
    assert files(outbox) == set()
    assert len(outbox) == 0


def test_a_segment_stays_as_long_as_one_entry_names_it(outbox):
    file = written(outbox, SEGMENT)
    outbox.put([entry(1, SEGMENT)])
    outbox.put([entry(2, SEGMENT)])
    outbox.drop([1])
    assert file.exists()
    outbox.drop([2])
    assert not file.exists()


def test_the_oldest_come_first_and_no_more_than_asked_for(outbox):
    outbox.put([entry(allocation) for allocation in range(5)])
    assert [each["allocation"] for each in outbox.waiting(3)] == [0, 1, 2]
    assert len(outbox.waiting(None)) == 5


def test_a_new_batch_does_not_overwrite_one_of_an_earlier_life(outbox):
    outbox.put([entry(1)])
    fresh = again(outbox)
    fresh.put([entry(2)])
    assert again(fresh).allocations() == [1, 2]


def test_a_torn_file_costs_that_batch_only(outbox):
    outbox.put([entry(1)])
    outbox.put([entry(2)])
    torn = outbox.folder / "0.json"
    torn.write_text(torn.read_text()[:-3])
    fresh = again(outbox)
    assert fresh.allocations() == [2]
    assert not torn.exists()


def test_a_file_of_another_shape_costs_that_batch_only(outbox):
    outbox.put([entry(1)])
    for number, content in enumerate(['{"a": 1}', "[1]", '[{"no": 1}]', "null", '[{"allocation": "x"}]'], 7):
        (outbox.folder / f"{number}.json").write_text(content)
    (outbox.folder / "note.json").write_text("[]")
    fresh = again(outbox)
    assert fresh.allocations() == [1]


def test_what_a_killed_worker_left_half_written_is_swept(outbox):
    kept = written(outbox, SEGMENT)
    lost = written(outbox, OTHER)
    outbox.put([entry(1, SEGMENT)])
    (outbox.folder / f"{OTHER}-123.tmp").write_bytes(b"ro")
    (outbox.folder / "7.tmp").write_text("[")
    fresh = again(outbox)
    assert kept.exists()
    assert not lost.exists()
    assert files(fresh) == {kept.name, "0.json"}


def test_a_second_agent_does_not_get_the_same_folder(outbox):
    with pytest.raises(BlockingIOError):
        Outbox(outbox.folder).open()
    outbox.close()
    second = Outbox(outbox.folder)
    second.open()
    second.close()


def test_others_cannot_look_into_a_folder_it_makes(outbox):
    assert stat.S_IMODE(outbox.folder.stat().st_mode) == 0o700


def test_a_kill_loses_nothing_that_was_put(tmp_path):
    """A process puts batches as fast as it can and tells each; it is killed in the middle."""
    script = f"""
import sys
from pathlib import Path
from nodes.agent.outbox import Outbox
outbox = Outbox(Path({str(tmp_path)!r}))
outbox.open()
number = 0
while True:
    outbox.put([{{"allocation": number, "ranges": [[0, 1, 1]], "rows": [["x" * 1000]]}}])
    print(number, flush=True)
    number += 1
"""
    writer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(200):
        last = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    told = [last, *(int(line) for line in writer.stdout.read().split("\n")[:-1])]
    writer.wait()
    writer.stdout.close()
    found = Outbox(tmp_path)
    found.open()
    allocations = found.allocations()
    found.close()
    # One more may have been written than told.
    assert allocations[: told[-1] + 1] == list(range(told[-1] + 1))
    assert len(allocations) <= told[-1] + 2


def test_entries_are_kept_as_json_that_people_can_read(outbox):
    outbox.put([entry(1)])
    assert json.loads((outbox.folder / "0.json").read_text()) == [entry(1)]


def test_what_the_disk_does_not_take_is_reported_all_the_same(outbox):
    shutil.rmtree(outbox.folder)
    outbox.put([entry(1), entry(2)])
    assert [each["allocation"] for each in outbox.waiting(None)] == [1, 2]
    outbox.drop([1, 2])
    assert len(outbox) == 0
