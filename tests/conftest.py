"""The ground all tests stand on: a data folder of their own, chosen before Django reads its settings."""

from __future__ import annotations

import atexit
import fcntl
import gc
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings as django_settings
from hypothesis import settings as hypothesis_settings

from cascade import local

# Until all tests are collected nothing becomes garbage, and what is loaded by then stays.
gc.disable()

if django_settings.configured:
    raise pytest.UsageError("Django's settings were read too early: unset DJANGO_SETTINGS_MODULE and run pytest again.")

_FOLDER = tempfile.mkdtemp(prefix="cascade-tests-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

# Tests start hundreds of processes, which would all compile the same modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for _name in [name for name in os.environ if name.startswith("CASCADE_")]:
    del os.environ[_name]
os.environ["CASCADE_DATA_DIR"] = _FOLDER
os.environ["CASCADE_CONFIG"] = ""
os.environ["CASCADE_ALLOWED_NETWORKS"] = "127.0.0.0/8,::1/128"  # servers of the tests' own
if _database := os.environ.get("TEST_DATABASE_URL"):
    os.environ["CASCADE_DATABASE_URL"] = _database
    # Each test has a folder of its own; a lake would stay where it was made.
    os.environ["CASCADE_RESULT_STORE"] = "file"
os.environ["DJANGO_SETTINGS_MODULE"] = "cascade.settings"
# Now, not in pytest_configure: conftest files below this one import models.
django.setup()
# Processes of pytest-xdist inherit the environment, and are to choose a folder of their own before they read settings.
del os.environ["DJANGO_SETTINGS_MODULE"]

# Machines that run tests are slow at times; that is no failure of a property.
hypothesis_settings.register_profile("cascade", deadline=None)
hypothesis_settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "cascade")


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, not in all that was loaded: a seventh of the time of most."""
    gc.freeze()
    gc.enable()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Keys, compressed bytes and long texts are made anew in each process, which all must have the same names."""
    long = (isinstance(val, str) and len(val) > 30) or (isinstance(val, bytes) and len(val) > 16)
    return argname if long else None


@pytest.fixture(scope="session", autouse=True)
def _trees_begin_as_copies(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of one folder with database and operator, made by whichever process of the tests needs it first."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "prepared"

    @cache
    def prepared() -> Path:
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "local.json").exists():
                local.LocalTree(folder).prepare()
        return folder

    local.prepared = prepared


@pytest.fixture(autouse=True)
def _quick_passwords(settings: Any) -> None:
    """Password hashes are slow on purpose; tests that sign in would spend their time there."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _unknown_runs() -> None:
    """A run's number comes again when a test's transaction is rolled back; in production it never does."""
    from dispatch.lifecycle import grants

    grants.frozen.cache_clear()
    grants.about.cache_clear()
