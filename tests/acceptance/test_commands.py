"""The commands an operator types against a running tree: what they say, and their exit statuses."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator

import pytest
import requests

from cascade.local import ROOT, Child, LocalTree, free_port
from tests.acceptance.commands import managed
from tests.acceptance.trees import EVEN, QUICK, account, until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("worker", 2, [{"task_type": "echo", "slots": 1}])]
    with LocalTree(tmp_path_factory.mktemp("commands"), children=children, env=QUICK) as tree:
        yield tree


# submit


def test_submit_waits_for_a_run_that_completes_and_ends_with_0(tree):
    done = tree.manage("submit", "echo", "--item", "a", "--item", '{"key": "b"}', "--param", "rows=2", "--wait")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    begun = re.fullmatch(r"run (\d+): 2 items of echo", lines[0])
    assert begun is not None
    number = begun[1]
    assert lines[1] == f"run {number} completed: 2 of 2 items saved, 4 rows"
    assert done.stderr == ""


def test_submit_ends_with_1_for_a_run_that_does_not_and_names_what_failed(tree):
    done = tree.manage(
        "submit", "data_import", "--item", "IBM", "--item", "NOPE", "--param", "source=sample", "--wait", check=False
    )
    assert done.returncode == 1
    assert re.search(r"run \d+ partial: 1 of 2 items saved, \d+ rows, 1 failed", done.stdout)
    assert "'NOPE' is not in the sample" in done.stdout
    assert re.search(r"run \d+ ended partial", done.stderr)


def test_submit_without_wait_returns_at_once_and_json_is_for_programs(tree, tmp_path):
    (tmp_path / "items").write_text("c\nd\n\n")
    done = tree.manage("submit", "echo", "--items-file", str(tmp_path / "items"), "--name", "nightly", "--json")
    run = json.loads(done.stdout)
    assert (run["count"], run["state"]) == (2, "running")
    assert tree.wait(run["run"])["state"] == "completed"
    assert tree.json("GET", f"/api/v1/runs/{run['run']}")["name"] == "nightly"
    assert account(tree, run["run"], ["c", "d"]) == EVEN


WRONG = [
    (["submit", "nothing", "--item", "a"], 2, "'nothing' is not a task type; known are: analysis, backtest, crawl"),
    (["submit", "echo"], 2, "items: is empty"),
    (["submit", "echo", "--item", "a", "--param", "rows=many"], 2, "params.rows: 'many' is not a whole number"),
    (["submit", "echo", "--item", "a", "--param", "rows"], 2, "--param 'rows' is not NAME=VALUE"),
    (["submit", "echo", "--item", "a", "--priority", "11"], 2, "priority: 11"),
    (["submit", "echo", "--item", "a", "--split", "year"], 2, "split: 'year': echo items cannot be split"),
    (["submit", "echo", "--items-file", "/no/such/file"], 2, "--items-file: "),
    (["node", "add", "worker"], 4, "a node called 'worker' exists already"),
    (["node", "add", "small", "--capacity", "2", "--quota", "echo=3"], 2, "--quota echo=3: 3 is above the node's"),
    (["node", "add", "small", "--quota", "nothing=1"], 2, "--quota nothing=1: 'nothing' is not a task type"),
    (["node", "drain", "nobody"], 3, "no node is called 'nobody'; there are: "),
    (["node", "revoke", "worker", "--key", "CN123"], 3, "worker has no key CN123"),
    (["signin", "nobody"], 3, "member of the staff"),
]


def test_wrong_input_is_refused_in_one_line_with_its_own_status(tree):
    for (arguments, status, says), done in zip(WRONG, managed(tree, [wrong[0] for wrong in WRONG]), strict=True):
        assert says in done.stderr, (arguments, done.stderr)
        assert done.returncode == status, arguments
        assert "Traceback" not in done.stderr
    assert set(tree.nodes()) - {"local"} == {"worker"}


# node and status


def test_a_node_added_at_the_terminal_works_drains_rotates_and_goes(tree):
    done = tree.manage("node", "add", "fresh", "--capacity", "3", "--quota", "echo=2", "--url", tree.url)
    access, secret = re.findall(r"(?:access|secret) key  (\S+)", done.stdout)
    command = f"CASCADE_ACCESS_KEY={access} CASCADE_SECRET_KEY={secret} python -m nodes.agent --parent {tree.url}"
    assert command in done.stdout
    argv = [tree.python, *command.split(" python ")[1].split(), "--data-dir", str(tree.folder("fresh"))]
    tree.spawn("fresh", argv, {"CASCADE_ACCESS_KEY": access, "CASCADE_SECRET_KEY": secret})
    until(lambda: tree.nodes()["fresh"]["state"] == "online")

    told = managed(tree, [["node", "drain", "fresh"], ["node", "list", "--json"], ["node", "resume", "fresh"]])
    assert [each.returncode for each in told] == [0, 0, 0]
    assert "fresh is draining: it holds 0 live allocations" in told[0].stdout
    listed = {each["name"]: each for each in json.loads(told[1].stdout)}
    assert listed["fresh"]["state"] == "draining"
    assert listed["fresh"]["keys"] == [access]
    assert listed["worker"]["state"] == "online"

    told = managed(tree, [["node", "rotate", "fresh", "--json"], ["node", "revoke", "fresh", "--key", access]])
    assert [each.returncode for each in told] == [0, 0]
    rotated = json.loads(told[0].stdout)
    assert "Revoked" in told[1].stdout
    until(lambda: "401: " in tree.tail("fresh"))
    assert tree.terminate("fresh") == 0
    tree.spawn(
        "fresh",
        argv,
        {"CASCADE_ACCESS_KEY": rotated["access_key"], "CASCADE_SECRET_KEY": rotated["secret_key"]},
    )
    until(lambda: tree.tail("fresh").count("we are 'fresh' with 3 slots") == 2)
    assert tree.terminate("fresh") == 0
    assert "Removed fresh." in tree.manage("node", "remove", "fresh").stdout
    assert "fresh" not in tree.nodes()


def test_status_shows_nodes_and_runs_to_people_and_to_programs(tree):
    run = tree.submit("echo", ["s"], name="shown")
    tree.wait(run)
    shown, for_programs = managed(tree, [["status"], ["status", "--json"]])
    assert shown.returncode == for_programs.returncode == 0
    text, told = shown.stdout, json.loads(for_programs.stdout)
    assert re.search(r"worker\s.*online.*push.*0/2.*echo=1", text)
    assert re.search(rf"{run} shown.*echo.*completed.*1/1 saved", text)
    (worker,) = [node for node in told["nodes"] if node["name"] == "worker"]
    assert (worker["state"], worker["capacity"], worker["in_use"]) == ("online", 2, 0)
    assert run in [each["run"] for each in told["runs"]]


def heed_ctrl_c() -> None:
    """A shell has what it starts in the background ignore it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_waiting_says_that_the_run_goes_on(tree):
    popen = subprocess.Popen(
        [tree.python, "manage.py", "submit", "echo", "--item", "a", "--param", "seconds=60", "--wait"],
        cwd=ROOT,
        env=tree._environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert popen.stdout is not None
    begun = re.fullmatch(r"run (\d+): 1 items of echo\n", popen.stdout.readline())
    assert begun is not None
    until(lambda: tree.progress(int(begun[1]))["in_flight"])
    popen.send_signal(signal.SIGINT)
    _, said = popen.communicate(timeout=30)
    assert popen.returncode == 130
    assert f"run {begun[1]} goes on: python manage.py run cancel {begun[1]} ends it" in said
    assert tree.manage("run", "cancel", begun[1]).returncode == 0


# rows while the server holds them


def test_rows_are_read_and_exported_while_the_server_runs(tree, tmp_path):
    run = tree.submit("echo", ["x", "y"])
    tree.wait(run)
    file = tmp_path / "rows.csv"
    read, exported, wrong, missing = managed(
        tree,
        [
            ["run", "results", str(run), "--format", "jsonl", "--order", "item"],
            ["export", "--run", str(run), "--out", str(file), "--where", "item=y", "--columns", "item"],
            ["run", "results", str(run), "--where", "colour=red"],
            ["export", "nothing"],
        ],
    )
    assert read.returncode == exported.returncode == 0
    assert [json.loads(line)["item"] for line in read.stdout.splitlines()] == ["x", "y"]
    assert file.read_text().split() == ['"item"', '"y"']
    assert str(file) in exported.stderr
    assert (wrong.returncode, "colour" in wrong.stderr) == (2, True)
    assert (missing.returncode, "nothing" in missing.stderr) == (3, True)


def test_a_reader_that_has_had_enough_ends_the_command_without_a_word(tree):
    run = tree.submit("echo", ["many"], params={"rows": 50_000})
    tree.wait(run)
    command = [tree.python, "manage.py", "run", "results", str(run)]
    popen = subprocess.Popen(
        command, cwd=ROOT, env=tree._environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert popen.stdout is not None
    assert popen.stderr is not None
    assert popen.stdout.readline() == '"item","number","value"\n'
    popen.stdout.close()
    assert popen.stderr.read() == ""
    assert popen.wait(30) == 0


# completion


def test_bash_completes_commands_options_and_names(tree):
    script = tree.data_dir / "completion.bash"
    script.write_text(tree.manage("completion", "bash").stdout)
    asked = [
        ("ru", {"run", "runs", "runserver"}),
        ("node ", {"add", "list", "drain", "resume", "rotate", "revoke", "remove"}),
        ("node drain ", {"worker"}),
        ("node add x --carr", {"--carrier"}),
        ("node add x --carrier pu", {"pull", "push"}),
        ("submit ec", {"echo"}),
        ("run results 1 --format j", {"json", "jsonl"}),
        ("runs --state can", {"cancelled"}),
        ("config --role ", {"parent", "child", "standalone"}),
    ]
    lines = [f"source {script}"]
    for words, _ in asked:
        # As bash's own line editor calls it.
        given = [tree.python, "manage.py", *words.split(), *([""] if words.endswith(" ") else [])]
        lines.append(f"COMP_WORDS=({' '.join(map(shlex.quote, given))}); COMP_CWORD={len(given) - 1}; COMPREPLY=()")
        lines.append('_cascade; echo "${COMPREPLY[*]}"')
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        cwd=ROOT,
        env=tree._environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    for (words, expected), line in zip(asked, done.stdout.splitlines(), strict=True):
        assert expected <= set(line.split()), words


# settings


def test_a_child_serves_where_its_file_says_and_tells_where_it_is(tree, tmp_path):
    key = json.loads(tree.manage("node", "add", "served", "--json").stdout)
    port = free_port()
    file = tmp_path / "node_config.yaml"
    file.write_text(
        f"node_name: Served\nport: {port}\nmax_workers: 2\nmaster_url: {tree.url}\nenable_monitoring: true\n"
    )
    argv = [tree.python, "manage.py", "runserver", "--noreload", "--role", "child", "--config", str(file)]
    keys = {"CASCADE_ACCESS_KEY": key["access_key"], "CASCADE_SECRET_KEY": key["secret_key"]}
    tree.spawn("served", argv, {**keys, "CASCADE_DATA_DIR": str(tmp_path)})
    until(lambda: tree.nodes()["served"]["state"] == "online")
    health = requests.get(f"http://127.0.0.1:{port}/api/v1/health", timeout=10).json()
    assert health["node_name"] == "Served"
    log = tree.tail("served", 60)
    assert f"settings    {file}" in log
    assert f"listens on  127.0.0.1:{port}" in log
    assert "enable_monitoring (node_config.yaml, key enable_monitoring) has no effect" in log
    # The parent grants four slots; two workers are all that this file allows.
    assert "'served' with 2 slots" in log
    assert key["secret_key"] not in log
    tree.terminate("served")


def test_a_node_that_others_reach_without_a_key_is_warned_of_wherever_the_address_was_given(tree, tmp_path):
    port = free_port()
    argv = [tree.python, "manage.py", "runserver", "--noreload", "--role", "child", f"0.0.0.0:{port}"]
    tree.spawn("open", argv, {"CASCADE_DATA_DIR": str(tmp_path)})
    until(lambda: f"listens on  0.0.0.0:{port}" in tree.tail("open", 60))
    assert "whoever reaches 0.0.0.0 can make this node work" in tree.tail("open", 60)
    tree.terminate("open")


def test_a_second_agent_on_the_same_folder_is_refused_with_the_folder(tree, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = ["runserver", "--noreload", "--role", "child", str(free_port()), "--set", f"agent_dir={tmp_path}"]
        done = tree.manage(*argv, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (5, False)
    assert f"another agent uses {tmp_path}" in done.stderr


# signin


def test_a_sign_in_link_opens_the_page_once(tree):
    link = tree.manage("signin", tree.username, "--url", tree.url).stdout.strip()
    assert link.startswith(tree.url)
    with requests.Session() as browser:
        browser.trust_env = False
        page = browser.get(link, timeout=30)
        assert page.status_code == 200
        assert "worker" in page.text
    with requests.Session() as other:
        other.trust_env = False
        again = other.get(link, timeout=30)
        assert "worker" not in again.text


# what watches the server


def test_metrics_and_readiness_of_a_running_server_tell_of_its_child_and_its_work(tree):
    assert tree.manage("submit", "echo", "--item", "m", "--item", "n", "--wait").returncode == 0
    ready = requests.get(f"{tree.url}/readyz", timeout=30)
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    page = requests.get(f"{tree.url}/metrics", timeout=30)
    assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert values['cascade_node_up{node="worker"}'] == "1"
    assert float(values['cascade_items_total{state="saved"}']) >= 2
    assert float(values['cascade_verb_duration_seconds_count{verb="report"}']) >= 1
    assert {name: values[f'cascade_loop_up{{loop="{name}"}}'] for name in ("dispatcher", "saver")} == {
        "dispatcher": "1",
        "saver": "1",
    }
