#!/usr/bin/env python
"""The command line: ``manage.py help`` lists the commands."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
    try:
        from django.core.management import execute_from_command_line
    except ImportError as error:
        raise SystemExit(f"{error}. Run 'make demo' or 'pip install -r requirements.txt' first.") from error
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
