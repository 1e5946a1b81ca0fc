"""A bounded part of what ``python -m tests.hostile`` does at length: the API's operations with values of all kinds.

What is checked of each answer: no 5xx, a status and a content type that the schema names, a body that fits it, and 401
for whoever is not who he should be.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.hostile import openapi
from tests.hostile.victim import Victim, victim

SEED = 5 if os.environ.get("CI") else random.randrange(2**31)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with victim(tmp_path_factory.mktemp("parent")) as made:
        yield made


@pytest.mark.parametrize(
    ("who", "phase", "examples", "only"),
    [
        ("operator", "examples", 1, ""),
        ("operator", "fuzzing", 1, ""),
        ("operator", "coverage", 1, "/api/v1/rates"),
        ("child", "fuzzing", 6, ""),
        ("child", "coverage", 1, "/api/v1/agent/accept"),
        ("stranger", "fuzzing", 1, "/api/v1/(nodes|runs|tables|agent)"),
    ],
)
def test_no_request_of_anybody_makes_the_parent_fail(
    parent: Victim, who: str, phase: str, examples: int, only: str
) -> None:
    found = openapi.attack(parent, who, phases=[phase], examples=examples, seed=SEED, seconds=12, only=only)
    assert found.tried
    assert found.server_errors == 0, f"seed {SEED}:\n{found.told()}"
    assert not found.failures, f"seed {SEED}:\n{found.told()}"
    assert not found.errors, found.errors
    assert parent.faults == []
