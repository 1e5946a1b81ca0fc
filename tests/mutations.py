"""``python -m tests.mutations [WORD …]``: is each defence held by a test? Takes one out in a copy, and runs that test.

With words: those whose name has one of them. Ends with a table; the status is 1 where a defence can be taken out
without a test that turns red.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.defences import DEFENCES, Defence

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 300.0
TRIES = 3
"""Where threads race, or examples are drawn, a test finds it soon but not each time."""


@dataclass(frozen=True)
class Outcome:
    defence: Defence
    found: bool
    seconds: float
    detail: str = ""


def main(words: Sequence[str]) -> int:
    chosen = [each for each in DEFENCES if not words or any(word in each.name for word in words)]
    if not chosen:
        print(
            f"no defence has {' or '.join(words)} in its name; there are: {', '.join(each.name for each in DEFENCES)}"
        )
        return 2
    with ExitStack() as stack:
        copy = Path(stack.enter_context(TemporaryDirectory(prefix="cascade-mutations-")))
        _copy(copy)
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        if any(each.postgresql for each in chosen):
            from tests.servers import postgresql

            environ["TEST_POSTGRESQL_URL"] = stack.enter_context(postgresql())
        outcomes = []
        for outcome in _tried(copy, chosen, environ):
            outcomes.append(outcome)
            print(_line(outcome), flush=True)
    missed = [each for each in outcomes if not each.found]
    print(f"\n{len(outcomes) - len(missed)} of {len(outcomes)} defences are held by a test")
    return 1 if missed else 0


def _tried(copy: Path, chosen: Sequence[Defence], environ: dict[str, str]) -> Iterator[Outcome]:
    print(f"{'found':6} {'seconds':>7}  defence taken out, and the test")
    for each in chosen:
        file = copy / each.file
        text = file.read_text()
        if text.count(each.old) != 1:
            yield Outcome(each, False, 0, f"its text is {text.count(each.old)} times in {each.file}, not once")
            continue
        began = time.monotonic()
        whole = _run(copy, each, environ)
        if whole.returncode:
            yield Outcome(each, False, time.monotonic() - began, f"red before it: {_last(whole)}")
            continue
        file.write_text(text.replace(each.old, each.new))
        try:
            for _ in range(TRIES):
                without = _run(copy, each, environ)
                if without.returncode:
                    break
        finally:
            file.write_text(text)
        # 1: tests failed. A signal: without the defence the process does not outlive them. Else the test could not run.
        red = without.returncode == 1 or without.returncode < 0
        problem = "" if red or not without.returncode else f"the test could not run: {_last(without)}"
        yield Outcome(each, red, time.monotonic() - began, problem)


def _run(copy: Path, defence: Defence, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *defence.tests]
    own = dict(environ)
    if defence.postgresql:
        own["TEST_DATABASE_URL"] = own["TEST_POSTGRESQL_URL"]
    try:
        return subprocess.run(argv, cwd=copy, env=own, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "it hung until its time was up", "")


def _copy(target: Path) -> None:
    """What git knows of, with changes that are not committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _line(outcome: Outcome) -> str:
    mark = "red" if outcome.found else "NOT"
    tests = " ".join(test.removeprefix("tests/") for test in outcome.defence.tests)
    told = f"\n{'':16}{outcome.detail}" if outcome.detail else ""
    return f"{mark:6} {outcome.seconds:7.1f}  {outcome.defence.name}\n{'':16}{tests}{told}"


def _last(ended: subprocess.CompletedProcess[str]) -> str:
    lines = (ended.stdout + ended.stderr).strip().splitlines()
    return lines[-1] if lines else f"status {ended.returncode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
