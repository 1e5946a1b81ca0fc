"""A server's id, made by whoever needs it first."""

from __future__ import annotations

import threading
from pathlib import Path

from nodes import identity


def test_all_that_need_it_at_once_get_the_same_and_none_sees_half_of_it(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / str(number)
        gate = threading.Barrier(6)
        found: list[str] = []

        def ask(folder: Path = folder, gate: threading.Barrier = gate, found: list[str] = found) -> None:
            gate.wait()
            found.append(identity.own(folder))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert set(found) == {identity.own(folder)}
        assert [file.name for file in folder.iterdir()] == [identity.FILE]
