"""Which shards travel to a worker together: very short ones that compute, never what waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent, Work


@pytest.mark.parametrize(("task_type", "together"), [("echo", 3), ("feed_update", 1), ("crawl", 1)])
async def test_what_waits_is_not_bundled_however_short_it_was(tmp_path: Path, task_type: str, together: int) -> None:
    agent = Agent(AgentConfig(data_dir=tmp_path))
    agent.capacity = 1
    agent._seconds[task_type] = 0.001
    agent._queue.extend(Work(number, task_type, {}, 10.0, number, ["a"]) for number in range(4))
    assert len(agent._take()) == together
