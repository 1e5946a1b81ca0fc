"""``python -m tests.postgresql [pytest's arguments]``: the tests of what a database must keep apart, on PostgreSQL.

All of tests/integration may be named; without arguments it is those where verbs race.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.servers import postgresql

RACES = [
    f"tests/integration/test_{name}.py"
    for name in (
        *("accept", "assign", "cancel", "claim", "copies", "expire", "grant", "paces", "rates", "shorten"),
        *("registrations", "release", "report", "retry", "schedule", "sources", "submit"),
    )
]


def main() -> int:
    with postgresql() as url:
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(sys.argv[1:] or RACES)]
        return subprocess.call(argv, env={**os.environ, "TEST_DATABASE_URL": url})


if __name__ == "__main__":
    sys.exit(main())
