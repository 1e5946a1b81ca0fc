"""A run of many items whose states change every few of them, which is the most there is to draw.

Written past the verbs, by a process of its own (``python -m tests.browser.strewn``) in the parent's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cascade.local import LocalTree
from tests.acceptance.trees import until

ITEMS = 10_000
ALIKE = 33
"""So many neighbours have a state: few enough that hardly two strokes are one."""


def add(tree: LocalTree) -> int:
    """The run's id in the running parent ``tree``."""
    file = tree.data_dir / "strewn"
    tree.spawn("strewn", [sys.executable, "-m", "tests.browser.strewn", str(file)])
    until(lambda: not tree.alive("strewn"))
    assert file.exists(), tree.tail("strewn")
    return int(file.read_text())


def _fill() -> int:
    from dispatch.items import freeze
    from dispatch.models import Shard
    from dispatch.states import ShardState
    from tests.integration import records

    states = list(ShardState)
    items = freeze([f"site-{number}" for number in range(ITEMS)])
    run = records.run(ITEMS, type="echo", items=items, labels={"only": "nobody"}, cut=ITEMS, name="strewn")
    shards = [
        Shard(run=run, start=at, stop=at + 1, state=states[at // ALIKE % len(states)], attempts=1)
        for at in range(ITEMS)
    ]
    Shard.objects.bulk_create(shards, batch_size=1_000)
    return run.pk


if __name__ == "__main__":
    import django

    django.setup()
    Path(sys.argv[1]).write_text(str(_fill()))
