"""How long the state machines run, by the environment: STATEFUL=20 makes twenty times as many examples.

What fails is printed as it was found, with the blob that replays it. STATEFUL_SHRINK=1 looks for a shorter history that
fails, too, which takes some minutes; what failed before is tried first.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = float(os.environ.get("STATEFUL", "1"))
PHASES = [Phase.explicit, Phase.reuse, Phase.generate] + ([Phase.shrink] if "STATEFUL_SHRINK" in os.environ else [])


EXAMPLES = {"allocator": 80, "lifecycle": 20, "at_once": 10}
"""Histories of each machine in `make test`."""


def length(machine: str, steps: int) -> settings:
    """Its number of histories, of so many steps."""
    return settings(
        max_examples=max(int(EXAMPLES[machine] * TIMES), 1),
        stateful_step_count=steps,
        phases=PHASES,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
