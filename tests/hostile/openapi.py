"""Schemathesis against a running parent: every operation of its OpenAPI schema, with values that fit and that do not.

Who asks: an ``operator`` with a token, a ``child`` whose requests are signed when their body is final, a ``stranger``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from requests import PreparedRequest
from requests.auth import AuthBase
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from nodes import signing
from tests.hostile.victim import Victim

PHASES = ("examples", "coverage", "fuzzing", "stateful")
WHO = ("operator", "child", "stranger")


@dataclass
class Found:
    """What an attack came to. ``failures``: a readable line for each kind, with how often it was seen."""

    tried: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)

    def add(self, other: Found) -> None:
        self.tried += other.tried
        self.statuses += other.statuses
        self.operations |= other.operations
        self.failures += other.failures
        self.examples = {**other.examples, **self.examples}
        self.errors += other.errors

    def told(self) -> str:
        lines = [f"{count} x {name}\n    {self.examples[name]}" for name, count in self.failures.most_common()]
        return "\n".join([*lines, *self.errors])


class Signed(AuthBase):
    """A child's signature over the request as it goes out."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        self.access_key, self.secret_key = access_key, secret_key

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        body: Any = request.body or b""
        content = body.encode() if isinstance(body, str) else bytes(body)
        method, url = request.method or "", request.url or ""
        signed = signing.sign(method, url, content, access_key=self.access_key, secret_key=self.secret_key)
        request.headers.update(signed)
        return request


class Bearer(AuthBase):
    def __init__(self, credentials: str) -> None:
        self.credentials = credentials

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers["Authorization"] = self.credentials
        return request


@schemathesis.serializer("application/vnd.apache.arrow.file")
def _arrow(_: Any, value: Any) -> bytes:
    """Whatever bytes were made up stand for a segment."""
    return value if isinstance(value, bytes) else repr(value).encode()


def attack(
    victim: Victim,
    who: str,
    *,
    phases: Sequence[str] = PHASES,
    examples: int = 20,
    seconds: float | None = None,
    seed: int | None = None,
    only: str = "",
) -> Found:
    """``examples`` for each operation in phases that draw; ends after about ``seconds``. ``only``: a path's pattern.

    With a ``seed`` the same requests are made again, as far as answers are the same.
    """
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "cache": {"enabled": False},
            "base-url": victim.tree.url,
            "continue-on-failure": True,
            "request-timeout": 20,
            "phases": {name: {"enabled": name in phases} for name in PHASES},
            # That a value fits its schema does not mean that it makes sense beside the others.
            "checks": {"positive_data_acceptance": {"enabled": False}},
            "generation": {"max-examples": examples, "no-shrink": True, "deterministic": seed is not None},
            "suppress-health-check": ["all"],
            **({"max-time": max(1, round(seconds))} if seconds else {}),
        }
    )
    schema: Any = schemathesis.openapi.from_dict(document(victim), config=config)
    if who == "child":
        only = only or "/api/v1/agent/"
        schema.auth.set_from_requests(Signed(**victim.child.key))
    elif who == "operator":
        schema.auth.set_from_requests(Bearer(token(victim)))
    if only:
        schema = schema.include(path_regex=only)
    found = Found()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _count(found, event.recorder)
        elif isinstance(event, (events.NonFatalError, events.FatalError)):
            found.errors.append(f"{getattr(event, 'label', '')}: {getattr(event, 'value', event)!r}"[:500])
    return found


def token(victim: Victim) -> str:
    """The operator's, as the tree has it in its session."""
    victim.tree.request("GET", "/api/v1/runs")
    return str(victim.tree._session.headers["Authorization"])


def document(victim: Victim) -> dict[str, Any]:
    answer = victim.tree.request("GET", "/api/schema", params={"format": "json"})
    found: dict[str, Any] = answer.json()
    return found


def _lenient(failure: Any) -> bool:
    """What is taken on purpose: a number for a text, and a filter that is there but empty."""
    message = str(failure.message)
    return "Schema-violating" in failure.title and ("Incorrect type" in message or "'date-time' format" in message)


def _count(found: Found, recorder: Any) -> None:
    for interaction in recorder.interactions.values():
        found.tried += 1
        if interaction.response is not None:
            found.statuses[interaction.response.status_code] += 1
    found.operations |= {node.value.operation.label for node in recorder.cases.values()}
    for case, nodes in recorder.checks.items():
        for node in nodes:
            if node.failure_info is not None and not _lenient(node.failure_info.failure):
                failure = node.failure_info.failure
                label = recorder.cases[case].value.operation.label
                name = f"{label} | {node.name}: {failure.title}"
                found.failures[name] += 1
                answer = recorder.interactions[case].response if case in recorder.interactions else None
                text = "" if answer is None else f" -> {answer.status_code} {answer.content[:300]!r}"
                found.examples.setdefault(
                    name, f"{failure.message[:300]} | {node.failure_info.code_sample[:700]}{text}"
                )
