"""Where settings come from: file, environment, arguments; which names they have; and what is said of wrong ones."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascade import config, config_file
from cascade.config import Config
from nodes import aliases, signing
from nodes.agent import config as agent_config
from nodes.given import SettingsError, collect, is_secret
from nodes.protocol import FieldError

ROOT = Path(__file__).resolve().parents[2]
ACCESS, SECRET, _ = signing.new_key()
SUFFIXES = ("toml", "json", "yaml", "yml")


def written(folder: Path, suffix: str, content: dict[str, Any]) -> str:
    """``content`` in a file of that format; the file's path."""
    file = folder / f"settings.{suffix}"
    if suffix == "json":
        file.write_text(json.dumps(content))
    elif suffix == "toml":
        lines = [f"{name} = {json.dumps(value)}" for name, value in content.items() if not isinstance(value, dict)]
        for name, table in content.items():
            if isinstance(table, dict):
                lines += [f"[{name}]", *(f"{inner} = {json.dumps(value)}" for inner, value in table.items())]
        file.write_text("\n".join(lines))
    else:
        file.write_text(yaml.safe_dump(content))
    file.chmod(0o600)
    return str(file)


def load(file: Any = None, *, arguments: Any = None, **environ: str) -> config.Loaded:
    pairs = [(name, value, f"argument --set {name}") for name, value in (arguments or {}).items()]
    return config.load(arguments=pairs, environ={"CASCADE_CONFIG": "", **environ}, file=file)


def problems(file: Any = None, *, arguments: Any = None, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(file, arguments=arguments, **environ)
    return [str(problem) for problem in raised.value.problems]


# The three places


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_environment_comes_before_the_file_and_an_argument_before_both(tmp_path, suffix):
    file = written(tmp_path, suffix, {"lease_seconds": 11, "allowed_hosts": ["a.example"], "https": True})
    settled = load(file).config
    assert (settled.lease_seconds, settled.allowed_hosts, settled.https) == (11, ["a.example"], True)
    assert load(file, CASCADE_LEASE_SECONDS="12").config.lease_seconds == 12
    assert load(file, arguments={"lease_seconds": "13"}, CASCADE_LEASE_SECONDS="12").config.lease_seconds == 13
    assert load(file, arguments={"lease_seconds": "13"}).config.allowed_hosts == ["a.example"]


def test_it_is_known_where_each_value_came_from(tmp_path):
    file = written(tmp_path, "toml", {"lease_seconds": 11, "max_retry_count": 2})
    found = load(file, arguments={"port": "9"}, MAX_WORKERS="3").found
    assert found.origin("lease_seconds") == "settings.toml, key lease_seconds"
    assert found.origin("default_max_attempts") == "settings.toml, key max_retry_count"
    assert found.origin("fallback_workers") == "environment variable MAX_WORKERS"
    assert found.origin("port") == "argument --set port"
    assert found.origin("host") == "default"


@pytest.mark.parametrize(("text", "hosts"), [('["a", "b"]', ["a", "b"]), ("a, b", ["a", "b"]), ("a", ["a"])])
def test_a_list_comes_from_the_environment_as_json_or_with_commas(text, hosts):
    assert load(CASCADE_ALLOWED_HOSTS=text).config.allowed_hosts == hosts


def test_an_empty_variable_is_none():
    assert load(CASCADE_PORT="", NODE_PORT="").config.port == 0


def test_a_file_in_the_project_folder_is_found_and_two_of_them_stop_the_start(tmp_path):
    (tmp_path / "cascade.json").write_text('{"port": 81}')
    assert config.load(environ={}, folder=tmp_path).config.port == 81
    (tmp_path / "cascade.yml").write_text("port: 82")
    with pytest.raises(SettingsError, match=r"cascade\.json and cascade\.yml"):
        config.load(environ={}, folder=tmp_path)
    # Named, one of them is enough.
    assert config.load(environ={"CASCADE_CONFIG": str(tmp_path / "cascade.yml")}, folder=tmp_path).config.port == 82
    assert config.load(environ={"CASCADE_CONFIG": ""}, folder=tmp_path).config.port == 0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.toml", "port = ", "is not TOML"),
        ("x.json", '{"port": 1, "port": 2}', "'port' is given twice"),
        ("x.json", "[1]", "holds list"),
        ("x.yaml", "port: 1\nport: 2\n", "'port' is given twice"),
        ("x.yaml", "port: [", "is not YAML"),
        ("x.yaml", "!!python/object/apply:os.system ['true']", "is not YAML"),
        ("x.toml", b"\xff\xfe", "is not UTF-8"),
        ("x.ini", "port=1", "does not end in one of"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (said,) = problems(str(file))
    assert said.startswith("config: ")
    assert says in said
    assert name in said


def test_a_file_that_is_not_there_stops_the_start_however_it_was_named(tmp_path):
    missing = str(tmp_path / "none.toml")
    assert problems(missing) == [f"config: there is no file {missing!r} (argument --config)"]
    with pytest.raises(SettingsError, match="CASCADE_CONFIG"):
        config.load(environ={"CASCADE_CONFIG": missing})


# What is wrong


WRONG = [
    ("port", "x", "'x' is not a whole number from 0 to 65535"),
    ("port", "65536", "'65536' is not a whole number from 0 to 65535"),
    ("port", "1.5", "'1.5' is not a whole number"),
    ("lease_seconds", "0", "'0' is not a number from 0.5 to 3600, in seconds"),
    ("lease_seconds", "nan", "'nan' is not a number"),
    ("run_days", "-1", "'-1' is not a number from 0.01, in days"),
    ("role", "king", "'king' is not one of: parent, child, relay, standalone"),
    ("https", "perhaps", "'perhaps' is not true or false"),
    ("log_level", "LOUD", "'LOUD' is not one of: DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ("time_zone", "Mars/City", "'Mars/City' is not a time zone like Europe/Berlin or UTC"),
    ("carrier", "pigeon", "'pigeon' is not one of: auto, push, pull"),
    ("parent", "parent:1", "'parent:1' is not an address like http://parent.example:8000"),
    ("workers", "-1", "'-1' is not a whole number from 0 to 10000"),
    ("drain_seconds", "inf", "'inf' is not a number from 0 to 86400"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_wrong_value_is_named_with_its_place_and_what_is_allowed(tmp_path, name, value, says):
    said = problems(written(tmp_path, "json", {name: value}))
    assert said[0].startswith(f"{name}: {says}")
    assert said[0].endswith(f"(settings.json, key {name})")
    variable = f"CASCADE_{name.upper()}"
    assert problems(**{variable: value})[0].endswith(f"(environment variable {variable})")
    assert problems(arguments={name: value})[0].endswith(f"(argument --set {name})")


def test_all_wrong_values_are_told_at_once(tmp_path):
    file = written(tmp_path, "toml", {"port": -1, "lease_second": 3, "carrier": "pigeon"})
    said = problems(file, arguments={"beat_seconds": "x"}, CASCADE_LEASE="3", MAX_WORKERS="many")
    told = " ".join(said)
    for name in ("port: -1", "lease_second: is not", "carrier: 'pigeon'", "beat_seconds: 'x'", "CASCADE_LEASE: is not"):
        assert name in told
    assert "max_workers: 'many' is not a whole number" in told
    assert len(said) == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_unknown_name_is_answered_with_the_nearest_known(tmp_path, suffix):
    (said,) = problems(written(tmp_path, suffix, {"lease_second": 3}))
    assert said == f"lease_second: is not a setting; did you mean lease_seconds? (settings.{suffix}, key lease_second)"


def test_an_unknown_variable_of_ours_is_not_passed_over():
    assert problems(CASCADE_LEASE_SECOND="3") == [
        "CASCADE_LEASE_SECOND: is not a setting; did you mean CASCADE_LEASE_SECONDS? (environment)"
    ]


def test_a_secret_is_not_repeated_not_even_a_wrong_one(tmp_path):
    file = written(
        tmp_path, "json", {"secret_key": "CSmistyped", "cascade": {"api_secret": 5}, "node_api_key": ["zzz"]}
    )
    said = " ".join(problems(file))
    assert "secret_key" in said
    assert "node_api_key" in said
    assert "CSmistyped" not in said
    assert "zzz" not in said


def test_a_secret_is_not_taken_from_an_argument():
    for name in ("secret_key", "node_api_key", "django_key"):
        assert is_secret(name)
        with pytest.raises(SettingsError, match="every user of this machine") as raised:
            config.argument_pairs([f"{name}=hidden"])
        assert "hidden" not in str(raised.value)


def test_a_name_with_a_password_in_an_address_is_masked():
    assert problems(CASCADE_PARENT="http://me:hidden@parent")[0].startswith("parent: 'http://***@parent'")


# Other systems' names

ALIASED = [
    # name in the file, value, role, our setting, our value
    ("node_id", "auto-generated", "child", "node_id", ""),
    ("node_id", "n1", "child", "node_id", "n1"),
    ("node_name", "Worker Node 1", "child", "node_name", "Worker Node 1"),
    ("host", "0.0.0.0", "child", "host", "0.0.0.0"),
    ("port", 8900, "child", "port", 8900),
    ("api_key", "let me in", "child", "node_api_key", "let me in"),
    ("api_key", ACCESS, "child", "access_key", ACCESS),
    ("api_key", "let me in", "standalone", "node_api_key", "let me in"),
    ("max_workers", 4, "child", "workers", 4),
    ("max_workers", 4, "parent", "fallback_workers", 4),
    ("max_workers", 4, "standalone", "fallback_workers", 4),
    ("task_timeout", 3600, "parent", "default_timeout", 3600),
    ("heartbeat_interval", 7, "parent", "beat_seconds", 7),
    ("heartbeat_interval", 60, "parent", "beat_seconds", 10),
    ("max_memory_mb", 4096, "child", "max_memory_mb", 4096),
    ("max_cpu_percent", 80.0, "child", "max_cpu", 80),
    ("log_level", "CRITICAL", "child", "log_level", "CRITICAL"),
    ("parent_api_url", "http://p:1", "child", "parent", "http://p:1"),
    ("parent_url", "http://p:1", "child", "parent", "http://p:1"),
    ("master_url", "http://p:1", "child", "parent", "http://p:1"),
    ("api_secret", SECRET, "child", "secret_key", SECRET),
    ("device_id", "worker-001", "child", "node_id", "worker-001"),
    ("device_name", "Worker 1", "child", "node_name", "Worker 1"),
    ("concurrent_tasks", 3, "child", "workers", 3),
    ("concurrent_tasks", 3, "standalone", "fallback_workers", 3),
    ("max_retry_count", 3, "parent", "default_max_attempts", 4),
    ("load_balance_strategy", "least_tasks", "parent", "default_balancer", "least_tasks"),
    ("device_timeout", 100, "parent", "patient_seconds", 100),
    ("device_timeout", 300, "parent", "patient_seconds", 180),
]


@pytest.mark.parametrize(("name", "value", "role", "ours", "settled"), ALIASED)
def test_each_name_of_the_other_systems_sets_ours(tmp_path, name, value, role, ours, settled):
    for suffix in SUFFIXES[:3]:
        loaded = load(written(tmp_path, suffix, {"role": role, name: value}))
        found = {**loaded.agent, **loaded.config.model_dump()}
        assert found[ours] == settled
        assert loaded.found.given[ours].written == name
    loaded = load(CASCADE_ROLE=role, **{f"CASCADE_{name.upper()}": str(value)})
    assert {**loaded.agent, **loaded.config.model_dump()}[ours] == settled


@pytest.mark.parametrize(
    ("name", "value", "role"),
    [
        ("mode", "master", "parent"),
        ("mode", "worker", "child"),
        ("mode", "standalone", "standalone"),
        ("node_type", "child", "child"),
        ("node_type", "parent", "parent"),
    ],
)
def test_the_role_has_other_names_too(tmp_path, name, value, role):
    assert load(written(tmp_path, "yaml", {name: value})).config.role == role
    assert load(written(tmp_path, "yaml", {"cascade": {name: value}})).config.role == role


def test_the_variables_of_worker_nodes_are_read():
    environ = {"NODE_PORT": "8900", "NODE_NAME": "Worker-1", "MAX_WORKERS": "8", "NODE_API_KEY": "a key"}
    loaded = load(CASCADE_ROLE="child", NODE_HOST="0.0.0.0", NODE_ID="n7", **environ)
    settled = loaded.config
    assert (settled.port, settled.node_name, settled.workers, settled.node_api_key) == (8900, "Worker-1", 8, "a key")
    assert (settled.host, settled.node_id) == ("0.0.0.0", "n7")
    # Ours come before them.
    assert load(NODE_PORT="8900", CASCADE_PORT="1").config.port == 1


def test_a_file_of_a_worker_node_is_taken_as_it_is(tmp_path):
    content = {
        "node_id": "auto-generated",
        "node_name": "Worker Node 1",
        "host": "0.0.0.0",
        "port": 8900,
        "api_key": None,
        "max_workers": 4,
        "task_timeout": 300,
        "heartbeat_interval": 10,
        "max_memory_mb": 4096,
        "max_cpu_percent": 80.0,
        "log_level": "INFO",
    }
    loaded = load(written(tmp_path, "json", content), arguments={"role": "child"})
    assert (loaded.config.port, loaded.config.workers, loaded.config.max_cpu) == (8900, 4, 80)
    assert loaded.found.notes == [
        "heartbeat_interval (settings.json, key heartbeat_interval) has no effect on a child: its parent tells it how "
        "often to beat"
    ]


def test_a_file_of_a_feed_child_is_taken_as_it_is(tmp_path):
    section = {
        "enabled": True,
        "node_type": "child",
        "parent_api_url": "http://parent-server:8001",
        "api_key": ACCESS,
        "api_secret": SECRET,
        "sync_interval": 300,
        "heartbeat_interval": 60,
    }
    file = written(tmp_path, "yaml", {"cascade": section})
    loaded = load(file)
    assert loaded.config.role == "child"
    assert loaded.agent["parent"] == "http://parent-server:8001"
    assert (loaded.agent["access_key"], loaded.agent["secret_key"]) == (ACCESS, SECRET)
    assert len(loaded.found.notes) == 2
    section["enabled"] = False
    assert load(written(tmp_path, "yaml", {"cascade": section})).config.role == "standalone"


def test_a_file_of_a_crawlers_master_is_taken_as_it_is(tmp_path):
    content = {
        "mode": "master",
        "device_id": "master-1",
        "device_name": "Master",
        "host": "0.0.0.0",
        "port": 8000,
        "master_url": None,
        "concurrent_tasks": 3,
        "task_timeout": 3600,
        "max_retry_count": 3,
        "dispatch_interval": 10,
        "load_balance_strategy": "round_robin",
        "heartbeat_interval": 30,
        "timeout_check_interval": 60,
        "device_timeout": 300,
        "enable_monitoring": True,
        "api_key": "a key",
    }
    loaded = load(written(tmp_path, "json", content))
    settled = loaded.config
    assert (settled.role, settled.default_balancer, settled.default_max_attempts) == ("parent", "round_robin", 4)
    assert (settled.beat_seconds, settled.patient_seconds, settled.fallback_workers) == (10, 180, 3)
    notes = " ".join(loaded.found.notes)
    for name in ("dispatch_interval", "timeout_check_interval", "enable_monitoring", "api_key", "heartbeat_interval"):
        assert name in notes
    assert "a key" not in notes


def test_our_own_name_wins_over_an_alias_of_the_same_place(tmp_path):
    for order in (("default_balancer", "load_balance_strategy"), ("load_balance_strategy", "default_balancer")):
        values = {"default_balancer": "health", "load_balance_strategy": "random"}
        file = written(tmp_path, "json", {name: values[name] for name in order})
        assert load(file).config.default_balancer == "health"
    # But an alias of a nearer place wins over our name of a farther one.
    assert load(file, CASCADE_LOAD_BALANCE_STRATEGY="weighted").config.default_balancer == "weighted"


def test_two_aliases_that_say_different_things_stop_the_start(tmp_path):
    (said,) = problems(written(tmp_path, "json", {"max_workers": 4, "concurrent_tasks": 3}))
    assert "concurrent_tasks: says something else than max_workers" in said
    assert load(written(tmp_path, "json", {"max_workers": 3, "concurrent_tasks": 3})).config.fallback_workers == 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("mode", "boss", "'boss' is not one of: master, worker, standalone"),
        ("node_type", "boss", "'boss' is not one of: parent, child"),
        ("max_retry_count", -1, "-1 is not a whole number from 0 to 99"),
        ("heartbeat_interval", "often", "'often' is not a number above 0, in seconds"),
        ("device_timeout", True, "True is not a number from 1 up, in seconds"),
        ("task_timeout", 9e9, "9000000000.0 is not a number from 0.1 to 604800"),
        ("max_workers", "many", "'many' is not a whole number"),
    ],
)
def test_a_wrong_value_of_an_alias_is_told_under_the_name_it_was_given(tmp_path, name, value, says):
    (said,) = problems(written(tmp_path, "json", {name: value}))
    assert said.startswith(f"{name}: {says}")


def test_every_alias_leads_to_a_setting_or_says_that_it_does_nothing():
    for alias in aliases.ALIASES:
        assert alias.target in config.names() or alias.note or alias.name == "cascade.enabled", alias


def test_the_tested_names_are_all_there_are():
    tested = {name for name, *_ in ALIASED} | {"mode", "node_type", "node_api_key"}
    silent = {alias.name for alias in aliases.ALIASES if not alias.target} | {"cascade.enabled"}
    assert {alias.name.removeprefix("cascade.") for alias in aliases.ALIASES} - tested - {
        name.removeprefix("cascade.") for name in silent
    } == set()


def test_an_agent_alone_knows_every_setting_of_a_server_by_name():
    """So that both can be given one file: add what is missing to ``_SERVER`` in nodes/agent/config.py."""
    assert set(Config.model_fields) - agent_config.SERVER - agent_config.BY_NAME.keys() == set()
    assert set(agent_config.SERVER) - set(Config.model_fields) == set()


# The agent, by the same file


def agent(file: str, *argv: str, served: bool = False, **environ: str) -> agent_config.AgentConfig:
    parser = argparse.ArgumentParser()
    agent_config.common_arguments(parser)
    agent_config.arguments(parser)
    return agent_config.load(parser.parse_args(["--config", file, *argv]), environ, served=served)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_agent_reads_the_same_file_as_a_server(tmp_path, suffix):
    content = {
        "mode": "worker",
        "master_url": "http://m:1/",
        "concurrent_tasks": 3,
        "access_key": ACCESS,
        "secret_key": SECRET,
        "lease_seconds": 30,
        "allowed_hosts": ["x"],
        "data_dir": str(tmp_path / "here"),
    }
    settled = agent(written(tmp_path, suffix, content))
    assert (settled.parent, settled.workers, settled.access_key) == ("http://m:1", 3, ACCESS)
    assert settled.data_dir == tmp_path / "here" / "agent" / ACCESS
    assert settled.notes == ()
    nearer = agent(written(tmp_path, suffix, content), "--set", "workers=5", CASCADE_WORKERS="4")
    assert nearer.workers == 5


def test_a_file_for_another_role_is_no_agents(tmp_path):
    content = {"mode": "master", "parent": "http://m:1", "access_key": ACCESS, "secret_key": SECRET}
    with pytest.raises(SettingsError, match="'master': this program is a child"):
        agent(written(tmp_path, "json", content))


def test_a_server_that_was_told_to_be_a_child_may_read_a_file_for_several_roles(tmp_path):
    file = written(tmp_path, "toml", {"role": "parent", "beat_seconds": 7})
    assert agent(file, served=True).parent == ""
    with pytest.raises(SettingsError, match="this program is a child"):
        agent(file, "--parent", "http://m:1")


def test_keys_of_a_nearer_place_come_before_a_key_file(tmp_path):
    other, secret, _ = signing.new_key()
    keys = tmp_path / "keys"
    keys.write_text(f"{ACCESS}\n{SECRET}\n")
    keys.chmod(0o600)
    file = written(tmp_path, "json", {"parent": "http://m:1", "key_file": str(keys)})
    assert agent(file).access_key == ACCESS
    assert agent(file, CASCADE_ACCESS_KEY=other, CASCADE_SECRET_KEY=secret).access_key == other
    assert agent(file, CASCADE_ACCESS_KEY=other).access_key == ACCESS


def test_without_a_parent_a_served_agent_is_driven_and_another_one_stops(tmp_path):
    file = written(tmp_path, "json", {"max_workers": 2})
    assert agent(file, served=True).parent == ""
    with pytest.raises(FieldError, match="parent"):
        agent(file)


def test_a_file_with_a_secret_that_others_can_read_is_told_of(tmp_path):
    file = written(tmp_path, "json", {"parent": "http://m:1", "access_key": ACCESS, "secret_key": SECRET})
    os.chmod(file, 0o644)
    (note,) = agent(file).notes
    assert "chmod 600" in note


# The written file


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("role", ["parent", "child", "standalone"])
def test_the_written_file_read_back_changes_nothing(tmp_path, role, suffix):
    format = {"yml": "yaml"}.get(suffix, suffix)
    text = config_file.write(role, format)
    file = tmp_path / f"settings.{suffix}"
    before = load(arguments={"role": role})
    texts = [text]
    if format != "json":
        # Also with every # taken away.
        texts.append(
            "\n".join(
                line[1:] if line[:1] == "#" and line[1:2] not in (" ", "") else line for line in text.splitlines()
            )
        )
    for content in texts:
        file.write_text(content)
        after = load(str(file))
        assert after.config == before.config
        assert {**agent_values(), **after.agent} == {**agent_values(), **before.agent} | {
            name: value for name, value in after.agent.items() if name == "data_dir"
        }
        assert after.found.notes == []
    assert len(texts) == 1 or set(after.found.given) >= set(config_file.names(role)) - {"balancers"}


def agent_values() -> dict[str, Any]:
    return {setting.name: setting.default for setting in agent_config.SETTINGS}


def test_the_written_file_says_all_there_is_to_say():
    for role in ("parent", "child", "standalone"):
        text = " ".join(config_file.write(role, "toml").replace("\n# ", " ").split())
        for name in config_file.names(role):
            assert f"CASCADE_{name.upper()}." in text
            assert config.allowed(name) in text
            assert config_file.description(name) in text
    assert "Also called: max_workers, concurrent_tasks." in text


def test_every_setting_is_described():
    for name in config.names():
        assert config_file.description(name).endswith("."), name


# The programs


def program(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "DJANGO_"))}
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True, timeout=60
    )


def test_a_server_does_not_start_with_wrong_values_and_says_each(tmp_path):
    file = written(tmp_path, "yaml", {"port": "x", "colour": "red"})
    done = program(
        "manage.py", "runserver", "--config", file, "--role", "king", "--set", "beat_seconds=0",
        CASCADE_DATA_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
    for says in ("port: 'x'", "colour: is not", "role: 'king'", "(argument --role)", "beat_seconds: '0'"):
        assert says in done.stderr


def test_an_agent_reads_yaml_without_django_and_without_pydantic(tmp_path):
    content = {"parent": "http://127.0.0.1:1", "access_key": ACCESS, "secret_key": SECRET}
    file = written(tmp_path, "yaml", content)
    code = (
        "import sys; from nodes.agent.config import parse; found = parse(['--config', sys.argv[1]]);"
        "print(found.parent, [name for name in ('django', 'pydantic', 'cascade') if name in sys.modules])"
    )
    done = program("-c", code, file)
    assert done.stdout.split(" ", 1) == ["http://127.0.0.1:1", "[]\n"], done.stderr
    without = program(
        "-c",
        code.replace("(name for", "(name for") + "; print('yaml' in sys.modules)",
        written(tmp_path, "toml", content),
    )
    assert without.stdout.splitlines()[1] == "False"


def test_settings_are_taken_from_every_commands_line(tmp_path):
    file = written(tmp_path, "toml", {"load_balance_strategy": "health"})
    done = program(
        "manage.py", "config", "--show", "--json", "--config", file, "--set", "lease_seconds=21",
        CASCADE_DATA_DIR=str(tmp_path), NODE_API_KEY="hidden",
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["file"] == file
    settings = told["settings"]
    assert settings["lease_seconds"] == {"value": 21.0, "from": "argument --set lease_seconds"}
    assert settings["default_balancer"]["value"] == "health"
    assert settings["node_api_key"] == {"value": "***", "from": "environment variable NODE_API_KEY"}
    assert "hidden" not in done.stdout + done.stderr


def test_what_is_not_given_is_not_collected():
    assert collect(config.names(), environ={}, config="").given == {}
