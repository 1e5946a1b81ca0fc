#!/usr/bin/env python
"""The command line: ``manage.py help`` lists the commands."""

import gc
import os
import sys


def main() -> None:
    # What is loaded stays: to look for garbage in it again and again would be an eighth of each command's time.
    gc.set_threshold(50_000)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
    try:
        from django.core.management import execute_from_command_line
        from django.db import OperationalError

        from cascade.config import take_arguments
        from nodes.given import SettingsError
    except ImportError as error:
        raise SystemExit(f"{error}. Run 'make demo' or 'pip install -r requirements.txt' first.") from error
    try:
        arguments = take_arguments(sys.argv)
    except SettingsError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    try:
        execute_from_command_line(arguments)
    except OperationalError as error:
        if "--traceback" in arguments:
            raise
        print(f"error: the database: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(5)


if __name__ == "__main__":
    main()
