"""``manage.py node``: what it prints, what it changes, and how it fails."""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from cascade import reach
from nodes import keys, registry, signing
from nodes.agent.config import load
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Node
from tests.integration.records import hold

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("node", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def alpha() -> Node:
    return registry.add_node("alpha", capacity=8, quotas=[QuotaSpec("data_import", 4)])[0]


def test_add_stores_the_node_as_told():
    run(
        *shlex.split(
            "add alpha --capacity 8 --quota data_import=4 --quota 'data_import[AAPL]=2/3' "
            "--label region=eu --label rack=7 --description 'in the cellar' --role relay --weight 1.5"
        )
    )
    node = Node.objects.get()
    assert (node.name, node.capacity, node.role, node.weight) == ("alpha", 8, "relay", 1.5)
    assert node.labels == {"region": "eu", "rack": "7"}
    assert node.description == "in the cellar"
    assert [str(quota) for quota in node.quotas.all()] == ["data_import=4", "data_import[AAPL]=2 (limit 3)"]


def test_a_relay_is_started_as_one():
    text = run("add", "eu", "--role", "relay", "--url", "https://parent.example")
    assert "runserver 8001 --role relay --parent https://parent.example" in text
    assert "nodes.agent" not in text
    made = json.loads(run("add", "us", "--role", "relay", "--json"))
    assert "--role relay" in made["command"]
    assert "agent_command" not in made


def test_add_prints_the_secret_and_commands_ready_to_paste():
    text = run("add", "alpha", "--url", "https://parent.example")
    row = AccessKey.objects.get()
    (secret,) = set(re.findall(r"CS[A-Za-z0-9_-]{43}", text))
    assert signing.public_key_of(secret) == row.public_key
    keys = f"CASCADE_ACCESS_KEY={row.access_key} CASCADE_SECRET_KEY={secret}"
    lines = [line.strip() for line in text.splitlines()]
    assert f"{keys} python manage.py runserver 8001 --role child --parent https://parent.example" in lines
    assert f"{keys} python -m nodes.agent --parent https://parent.example" in lines


def test_the_address_in_the_commands_is_this_machines_unless_told_and_quoted_where_needed():
    assert "--parent http://127.0.0.1:8000\n" in run("add", "alpha")
    assert "--parent 'http://a/?b&c'" in run("add", "beta", "--url", "http://a/?b&c")


def test_add_for_programs_is_json():
    made = json.loads(run("add", "alpha", "--json"))
    assert set(made) == {"id", "name", "access_key", "secret_key", "command", "agent_command"}
    assert made["id"] == Node.objects.get().pk
    assert AccessKey.objects.get(access_key=made["access_key"]).public_key == signing.public_key_of(made["secret_key"])
    assert made["secret_key"] in made["command"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("add alpha --capacity 0", "capacity: 0"),
        ("add alpha --capacity=-4", "capacity: -4"),
        ("add alpha --capacity x", "invalid int value: 'x'"),
        ("add alpha --weight nan", "weight: nan"),
        ("add a/b", "name: 'a/b'"),
        ("add alpha --capacity 2 --quota echo=1 --quota data_import=3", "--quota data_import=3: 3 is above"),
        ("add alpha --quota nosuch=1", "nosuch"),
        ("add alpha --quota echo", "data_import=4"),
        ("add alpha --label region", "region=eu"),
        ("add alpha --role king", "king"),
        ("drain nobody", "'nobody'"),
        ("revoke nobody", "'nobody'"),
        ("dance", "dance"),
        ("", "VERB"),
    ],
)
def test_a_mistake_is_named_and_stores_nothing(arguments, said):
    with pytest.raises(CommandError) as raised:
        run(*shlex.split(arguments))
    assert said in str(raised.value)
    assert not Node.objects.exists()


def test_a_name_in_use_is_named(alpha):
    with pytest.raises(CommandError, match="'alpha'"):
        run("add", "alpha")


def test_an_unknown_name_is_answered_with_the_known_ones(alpha):
    with pytest.raises(CommandError, match="alpha"):
        run("drain", "alhpa")


def test_list_says_how_to_begin_where_there_is_nothing():
    assert "node add" in run("list")
    assert json.loads(run("list", "--json")) == []


def test_list_shows_state_slots_quotas_and_keys(alpha):
    registry.add_node("beta")
    registry.record_beat(
        alpha.pk, at=timezone.now() - dt.timedelta(seconds=7), version="0.1", carrier="push", executors=["echo"]
    )
    hold(alpha, 3)
    header, first, second = run("list").splitlines()
    cells = re.split(r"  +", first)
    assert cells[:6] == ["alpha", "online", "push", "3 of 8", "data_import=4", "0.1"]
    assert re.fullmatch(r"[78] s ago", cells[6])
    assert cells[7] == alpha.keys.get().access_key
    assert re.split(r"  +", second)[:7] == ["beta", "offline", "pull", "0 of 4", "-", "-", "never"]
    assert header.split()[:3] == ["NAME", "STATE", "CARRIER"]


def test_list_tells_draining_inactive_and_keyless_nodes_apart(alpha):
    registry.record_beat(alpha.pk, at=timezone.now())
    registry.drain(alpha.pk)
    assert "draining" in run("list")
    registry.update_node(alpha.pk, active=False)
    keys.revoke_all(alpha.pk)
    line = run("list").splitlines()[1]
    assert "inactive" in line
    assert line.endswith("none")


def test_list_for_programs_is_json(alpha):
    hold(alpha, 2)
    (node,) = json.loads(run("list", "--json"))
    assert (node["name"], node["in_use"], node["capacity"], node["state"]) == ("alpha", 2, 8, "offline")
    assert node["quotas"] == [{"task_type": "data_import", "item": "", "slots": 4, "limit": None}]
    assert node["keys"] == [alpha.keys.get().access_key]


def test_list_never_shows_a_secret_again():
    secret = json.loads(run("add", "alpha", "--json"))["secret_key"]
    assert secret not in run("list") + run("list", "--json")


def test_drain_says_what_is_still_held_and_resume_undoes_it(alpha):
    hold(alpha, 2)
    assert "2 live allocations" in run("drain", "alpha")
    assert Node.objects.get().draining
    assert "again" in run("resume", "alpha")
    assert not Node.objects.get().draining


def test_rotate_prints_a_new_key_and_how_to_end_the_old_one(alpha):
    old = alpha.keys.get().access_key
    text = run("rotate", "alpha")
    assert f"python manage.py node revoke alpha --key {old}" in text
    (secret,) = set(re.findall(r"CS[A-Za-z0-9_-]{43}", text))
    new = alpha.keys.filter(revoked_at=None).exclude(access_key=old).get()
    assert new.public_key == signing.public_key_of(secret)
    assert json.loads(run("rotate", "alpha", "--json"))["name"] == "alpha"
    assert alpha.keys.get(access_key=old).revoked_at is not None


def test_rotate_after_revoke_speaks_of_no_old_key(alpha):
    run("revoke", "alpha")
    assert "stays valid" not in run("rotate", "alpha")


def test_revoke_ends_all_keys_or_the_named_one(alpha):
    old = alpha.keys.get().access_key
    new = keys.rotate(alpha.pk).access_key
    assert old in run("revoke", "alpha", "--key", old)
    assert [key.access_key for key in alpha.keys.filter(revoked_at=None)] == [new]
    assert "1 key " in run("revoke", "alpha")
    assert not alpha.keys.filter(revoked_at=None).exists()


def test_revoke_leaves_the_key_of_another_node_alone(alpha):
    _, other = registry.add_node("beta")
    with pytest.raises(CommandError, match=other.access_key):
        run("revoke", "alpha", "--key", other.access_key)
    assert AccessKey.objects.get(access_key=other.access_key).revoked_at is None


def test_remove_asks_for_force_while_work_is_held(alpha):
    hold(alpha, 1)
    with pytest.raises(CommandError, match="1 live allocation"):
        run("remove", "alpha")
    run("remove", "alpha", "--force")
    assert not Node.objects.exists()


def test_a_mistake_at_the_terminal_ends_with_a_status_and_no_traceback(tmp_path):
    environment = {**os.environ, "CASCADE_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "manage.py", "node", "add", "alpha", "--capacity", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "capacity: 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_go_into_a_file_that_an_agent_reads_and_nowhere_else(tmp_path):
    file = tmp_path / "beta"
    told = run("add", "beta", "--key-file", str(file))
    access_key, secret_key = file.read_text().split()
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret_key not in told
    assert str(file) in told
    key = AccessKey.objects.get(node__name="beta")
    assert (key.access_key, key.public_key) == (access_key, signing.public_key_of(secret_key))
    given = {"CASCADE_PARENT": "http://parent:8000", "CASCADE_KEY_FILE": str(file)}
    assert load(argparse.Namespace(), given).secret_key == secret_key
    assert [each.name for each in tmp_path.iterdir()] == ["beta"]


def test_a_key_file_is_never_replaced_and_then_nothing_is_made(tmp_path, alpha):
    file = tmp_path / "kept"
    file.write_text("kept")
    for arguments in (["add", "beta"], ["rotate", "alpha"]):
        with pytest.raises(CommandError, match=r"--key-file: .*kept exists"):
            run(*arguments, "--key-file", str(file))
    with pytest.raises(CommandError, match=r"--key-file: .*no folder"):
        run("add", "beta", "--key-file", str(tmp_path / "nowhere" / "beta"))
    assert file.read_text() == "kept"
    assert [node.name for node in Node.objects.all()] == ["alpha"]
    assert alpha.keys.count() == 1


def test_rotate_writes_the_new_key_for_programs_too(tmp_path, alpha):
    file = tmp_path / "alpha"
    told = json.loads(run("rotate", "alpha", "--key-file", str(file), "--json"))
    assert told == {"id": alpha.pk, "name": "alpha", "key_file": str(file)}
    assert alpha.keys.filter(access_key=file.read_text().split()[0], revoked_at=None).exists()


def test_the_command_that_is_told_names_the_server_that_runs(folder):
    reach.announce("http://127.0.0.1:9123")
    try:
        assert json.loads(run("add", "alpha", "--json"))["command"].endswith("--parent http://127.0.0.1:9123")
    finally:
        reach.withdraw()
    assert json.loads(run("rotate", "alpha", "--json"))["command"].endswith("--parent http://127.0.0.1:8000")


def test_every_verb_has_an_answer_for_programs(alpha):
    assert json.loads(run("drain", "alpha", "--json")) == {"node": "alpha", "draining": True, "held": 0}
    assert json.loads(run("resume", "alpha", "--json")) == {"node": "alpha", "draining": False}
    assert json.loads(run("revoke", "alpha", "--json")) == {"node": "alpha", "revoked": 1}
    assert json.loads(run("remove", "alpha", "--json")) == {"node": "alpha", "removed": True}
