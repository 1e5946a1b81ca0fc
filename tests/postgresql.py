"""``python -m tests.postgresql [pytest's arguments]``: the tests of what a database must keep apart, on PostgreSQL.

All of tests/integration and tests/stateful may be named; where none is, it is those where verbs race.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.servers import postgresql

RACES = [
    "tests/stateful/test_at_once.py",
    "tests/stateful/test_lifecycle.py",
    *(
        f"tests/integration/test_{name}.py"
        for name in (
            *("accept", "assign", "cancel", "claim", "copies", "expire", "grant", "migrations", "own_keys", "paces"),
            *(
                "prepared",
                "rates",
                "registrations",
                "release",
                "report",
                "retry",
                "schedule",
                "shorten",
                "sources",
                "submit",
            ),
        )
    ),
]


def main() -> int:
    given = sys.argv[1:]
    named = [] if any(each.startswith("tests/") for each in given) else RACES
    with postgresql() as url:
        # The server is gone afterwards: there is no database to remove.
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--reuse-db", *given, *named]
        return subprocess.call(argv, env={**os.environ, "TEST_DATABASE_URL": url})


if __name__ == "__main__":
    sys.exit(main())
