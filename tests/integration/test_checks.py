"""``manage.py check``: what it finds of settings, folder, clock, keys, databases and port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from cascade import checks
from cascade.local import ROOT

pytestmark = pytest.mark.django_db


def ids(settings: Any, **update: Any) -> set[str]:
    settings.CASCADE = settings.CASCADE.model_copy(update=update)
    return {str(each.id) for each in [*checks.check_settings(None), *checks.check_machine(None)]}


def test_nothing_is_found_where_nothing_is_wrong(settings, folder):
    assert ids(settings) == set()
    call_command("check", databases=["default"])


@pytest.mark.parametrize(
    ("update", "found"),
    [
        ({"default_balancer": "dice"}, "cascade.E002"),
        ({"balancers": ["no.such.module"]}, "cascade.E001"),
        ({"lease_seconds": 5, "beat_seconds": 5}, "cascade.W003"),
        ({"offline_seconds": 5, "beat_seconds": 5}, "cascade.W004"),
        ({"debug": True, "host": "0.0.0.0", "allowed_hosts": ["*"]}, "cascade.E005"),
        ({"debug": True, "allowed_hosts": ["cascade.example"]}, "cascade.E005"),
        ({"host": "0.0.0.0"}, "cascade.W006"),
        ({"role": "child", "host": "0.0.0.0"}, "cascade.W007"),
        ({"role": "standalone", "host": "0.0.0.0", "allowed_hosts": ["*"]}, "cascade.W007"),
        ({"data_dir": Path(__file__) / "below"}, "cascade.E008"),
        ({"dispatcher": "separate"}, "cascade.E017"),
        ({"redis_url": "redis://localhost:6379/0"}, "cascade.W018"),
        ({"database_url": "postgresql://user@localhost/name"}, "cascade.W019"),
    ],
)
def test_each_thing_that_is_wrong_has_its_number(settings, folder, update, found):
    assert ids(settings, **update) == {found}


def test_debug_on_this_machine_alone_is_nobodys_business(settings, folder):
    assert ids(settings, debug=True) == set()
    assert ids(settings, role="child", host="0.0.0.0", node_api_key="x", debug=False) == set()


def test_a_secret_key_that_others_can_read_is_found(settings, folder):
    (folder / "secret_key").write_text("x")
    (folder / "secret_key").chmod(0o644)
    assert ids(settings) == {"cascade.E015"}
    (folder / "secret_key").chmod(0o600)
    assert ids(settings) == set()


def test_a_clock_that_is_behind_what_was_written_is_found(settings, folder):
    later = time.time() + 86_400
    settings.CASCADE.results.write_bytes(b"")
    os.utime(settings.CASCADE.results, (later, later))
    assert ids(settings) == {"cascade.W014"}


def test_a_result_database_that_cannot_be_opened_is_found(settings, folder):
    settings.CASCADE.results.write_bytes(b"of another version" * 1000)
    assert [each.id for each in checks.check_results(None, databases=["default"])] == ["cascade.E020"]
    with pytest.raises(SystemCheckError, match=r"cascade\.E020"):
        call_command("check")


def test_a_database_of_a_newer_version_is_found(folder):
    from django.db.migrations.recorder import MigrationRecorder

    recorded = MigrationRecorder.Migration.objects.create(app="dispatch", name="9999_from_the_future")
    assert [each.id for each in checks.check_database(None, databases=["default"])] == ["cascade.E011"]
    recorded.delete()
    MigrationRecorder.Migration.objects.filter(app="dispatch").order_by("-pk")[0].delete()
    assert [each.id for each in checks.check_database(None, databases=["default"])] == ["cascade.W012"]


def test_an_embedded_database_that_the_first_start_will_make_is_nothing_to_warn_of(folder):
    env = {**os.environ, "CASCADE_DATA_DIR": str(folder / "new"), "CASCADE_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "manage.py", "check"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "W012" in done.stderr) == (0, False)


def test_a_port_that_is_taken_is_found(settings, folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings.CASCADE = settings.CASCADE.model_copy(update={"port": taken.getsockname()[1]})
        assert [each.id for each in checks.check_ports(None, databases=["default"])] == ["cascade.E030"]
    assert checks.check_ports(None, databases=["default"]) == []
