"""What an agent is told at its start: arguments, environment, key file."""

from __future__ import annotations

import argparse
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nodes import signing
from nodes.agent import config
from nodes.agent.config import AgentConfig, load
from nodes.protocol import FieldError

ROOT = Path(__file__).resolve().parents[2]
ACCESS, SECRET, _ = signing.new_key()
KEYS = {"CASCADE_ACCESS_KEY": ACCESS, "CASCADE_SECRET_KEY": SECRET}
PARENT = "http://parent.example:8000"


def read(*argv: str, **environ: str) -> AgentConfig:
    parser = argparse.ArgumentParser()
    config.arguments(parser)
    return load(parser.parse_args(argv), KEYS | environ)


def refused(*argv: str, **environ: str) -> FieldError:
    with pytest.raises(FieldError) as raised:
        read(*argv, **environ)
    return raised.value


def test_a_parent_and_keys_are_enough():
    settled = read("--parent", PARENT)
    assert (settled.parent, settled.access_key, settled.secret_key) == (PARENT, ACCESS, SECRET)
    assert settled.carrier == "auto"
    assert settled.data_dir == Path.home() / ".cascade" / ACCESS


def test_arguments_come_before_the_environment():
    environ = {"CASCADE_PARENT": "http://other:1", "CASCADE_CARRIER": "push", "CASCADE_AGENT_DIR": "/tmp/other"}
    settled = read("--parent", PARENT, "--carrier", "pull", "--data-dir", "/tmp/this", **environ)
    assert (settled.parent, settled.carrier, settled.data_dir) == (PARENT, "pull", Path("/tmp/this").resolve())
    settled = read(**environ)
    assert (settled.parent, settled.carrier) == ("http://other:1", "push")
    assert settled.data_dir == Path("/tmp/other").resolve()


def test_a_slash_at_the_end_of_the_address_does_no_harm():
    assert read("--parent", f"{PARENT}/").parent == PARENT


def test_there_is_no_argument_for_a_secret():
    parser = argparse.ArgumentParser()
    config.arguments(parser)
    assert "--secret" not in parser.format_help()
    assert "--secret" not in parser.format_usage()


@pytest.mark.parametrize(
    "address",
    [
        "parent:8000",
        "127.0.0.1:8000",
        "ftp://parent:1",
        "http://",
        "http:///path",
        "http://[",
        "http://parent:99999",
        "http://parent:port",
        "http://user:secret@parent:8000",
        "http://parent:8000/?x=1",
        "http://parent:8000/#x",
    ],
)
def test_an_address_that_cannot_be_is_refused_by_name(address):
    problem = refused("--parent", address)
    assert problem.field == "parent"
    assert address.replace("user:secret", "***") in problem.message


def test_no_parent_says_both_ways_to_name_it():
    problem = refused()
    assert problem.field == "parent"
    assert "--parent" in problem.message
    assert "CASCADE_PARENT" in problem.message


@pytest.mark.parametrize(
    ("environ", "field"),
    [
        ({"CASCADE_CARRIER": "pigeon"}, "carrier"),
        ({"CASCADE_LOG_LEVEL": "LOUD"}, "log_level"),
        ({"CASCADE_ACCESS_KEY": "AK123"}, "access_key"),
        ({"CASCADE_ACCESS_KEY": f"{ACCESS}\n"}, "access_key"),
        ({"CASCADE_ACCESS_KEY": ""}, "access_key"),
    ],
)
def test_a_bad_value_of_the_environment_is_named(environ, field):
    problem = refused("--parent", PARENT, **environ)
    assert problem.field == field
    assert repr(next(iter(environ.values()))) in problem.message


@pytest.mark.parametrize("secret", ["", "CS", SECRET[:-1], f"{SECRET}x", f"{SECRET} ", "CS" + "!" * 43])
def test_a_wrong_secret_is_not_repeated(secret):
    problem = refused("--parent", PARENT, CASCADE_SECRET_KEY=secret)
    assert problem.field == "secret_key"
    assert not secret or secret not in problem.message.replace("CS and 43", "")


@pytest.mark.parametrize("seconds", ["-1", "86401", "nan", "inf"])
def test_a_time_to_drain_out_of_bounds_is_refused(seconds):
    assert refused("--parent", PARENT, "--drain-seconds", seconds).field == "drain_seconds"


def test_no_time_to_drain_is_allowed():
    assert read("--parent", PARENT, "--drain-seconds", "0").drain_seconds == 0


@pytest.mark.parametrize("missing", ["CASCADE_ACCESS_KEY", "CASCADE_SECRET_KEY"])
def test_a_missing_key_is_named_with_the_command_that_makes_one(missing):
    parser = argparse.ArgumentParser()
    config.arguments(parser)
    environ = {name: value for name, value in KEYS.items() if name != missing}
    with pytest.raises(FieldError, match="node add") as raised:
        load(parser.parse_args(["--parent", PARENT]), environ)
    assert raised.value.field == missing


def test_the_secret_is_not_in_the_repr():
    assert SECRET not in repr(read("--parent", PARENT))


# The key file


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(f"{ACCESS}\n{SECRET}\n")
    file.chmod(0o600)
    return file


def from_file(file: Path) -> AgentConfig:
    parser = argparse.ArgumentParser()
    config.arguments(parser)
    return load(parser.parse_args(["--parent", PARENT, "--key-file", str(file)]), {})


def test_keys_can_be_read_from_a_file(key_file):
    settled = from_file(key_file)
    assert (settled.access_key, settled.secret_key) == (ACCESS, SECRET)


@pytest.mark.parametrize("mode", [stat.S_IRGRP, stat.S_IROTH, stat.S_IWGRP])
def test_a_key_file_that_others_can_read_is_refused_with_the_cure(key_file, mode):
    key_file.chmod(0o600 | mode)
    with pytest.raises(FieldError, match="chmod 600"):
        from_file(key_file)


@pytest.mark.parametrize("content", ["", ACCESS, f"{ACCESS}\n{SECRET}\nmore"])
def test_a_key_file_without_exactly_two_lines_is_refused(key_file, content):
    key_file.write_text(content)
    with pytest.raises(FieldError, match="one a line"):
        from_file(key_file)


def test_a_key_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FieldError, match="No such file") as raised:
        from_file(tmp_path / "none")
    assert raised.value.field == "key_file"


# The program


def program(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "DJANGO_"))}
    return subprocess.run(
        [sys.executable, "-m", "nodes.agent", *argv],
        cwd=ROOT,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_program_ends_with_one_line_about_a_wrong_setting():
    done = program("--parent", "parent:8000", **KEYS)
    assert done.returncode == 2
    assert done.stderr.startswith("error: parent: 'parent:8000' is not an address")
    assert len(done.stderr.splitlines()) == 1


def test_the_program_ends_with_one_line_about_a_folder_it_cannot_use(tmp_path):
    (tmp_path / "file").write_text("")
    done = program("--parent", PARENT, "--data-dir", str(tmp_path / "file" / "below"), **KEYS)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data_dir: ")
    assert str(tmp_path / "file") in done.stderr
