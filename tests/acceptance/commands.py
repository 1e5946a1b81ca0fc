"""Many commands of manage.py at the price of one: what they import, which is most of their time, is loaded once.

``python -m tests.acceptance.commands`` reads lists of arguments as JSON and runs each in a fork of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from tempfile import TemporaryFile

from cascade.local import ROOT, LocalTree


def managed(tree: LocalTree, commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """As ``tree.manage(*arguments, check=False)`` of each; settings among the arguments have no effect."""
    done = subprocess.run(
        [tree.python, "-m", "tests.acceptance.commands"],
        cwd=ROOT,
        env=tree._environment(),
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [
        subprocess.CompletedProcess(arguments, *ended)
        for arguments, ended in zip(commands, json.loads(done.stdout), strict=True)
    ]


def _run(arguments: list[str]) -> int:
    """The exit status, as the interpreter makes it."""
    import manage

    sys.argv = ["manage.py", *arguments]
    try:
        manage.main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forked(arguments: list[str]) -> tuple[int, str, str]:
    """Its exit status and what it wrote to both outputs."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            status = _run(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        out.seek(0)
        error.seek(0)
        return os.waitstatus_to_exitcode(ended), out.read(), error.read()


if __name__ == "__main__":
    import django
    from django.urls import get_resolver

    django.setup()
    assert get_resolver().url_patterns  # the checks of each command would import what these name
    print(json.dumps([_forked(arguments) for arguments in json.load(sys.stdin)]))
