"""Libraries load others wherever these are installed, for features that are not used here: some 14 MB of a parent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def load() -> None:
    """The modules that do so, without what they would load. Call it before anything else imports them."""
    with without("coreapi", "jinja2", "markdown", "psycopg", "psycopg2", "pygments", "requests"):
        import django.test.utils  # by way of the operators' tokens  # noqa: F401
        import rest_framework.compat  # noqa: F401


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, these cannot be imported, unless they were before."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None says so
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
