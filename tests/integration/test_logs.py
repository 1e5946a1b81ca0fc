"""Logs of shards: what the verb takes, how lines are numbered and bounded, and what the API and the command show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dispatch import events, log_lines, logs, pruning
from dispatch.models import Allocation, LogMark, LogPiece, Receipt, Run, RunLog
from nodes import keys, messages
from nodes.protocol import LOG_CHARACTERS, LOG_CUT, LOG_LIMIT, LOG_PIECES, FieldError, Unauthenticated
from tests.integration.agents import NO_ROW
from tests.integration.factory import Child, Clock, Work, at_once, child, done, failure, save, saver, submit
from tests.integration.native import Api
from tests.integration.test_run_commands import command, ended

pytestmark = pytest.mark.django_db


def tell(node: Child, *pieces: tuple[Any, int, str]) -> list[int]:
    """What is said to be gone."""
    printed = messages.read_logs({"logs": [[getattr(of, "allocation", of), start, text] for of, start, text in pieces]})
    return list(logs.take(node.caller, printed)["gone"])


def texts(run: Run, **wanted: Any) -> list[str]:
    return [line.text for line in log_lines.every(run.pk, log_lines.Wanted(**wanted))]


@pytest.fixture
def node() -> Child:
    return child()


@pytest.fixture
def run(node: Child) -> Run:
    return submit(4)


@pytest.fixture
def works(node: Child, run: Run) -> list[Work]:
    return node.works()


# What is taken


def test_lines_are_numbered_through_the_run_in_the_order_in_which_they_came(node, run, works):
    first, second, *_ = works
    assert tell(node, (first, 0, "a1\na2\n"), (second, 0, "b1\n")) == []
    assert tell(node, (first, 6, "a3\n")) == []
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    assert [(line.number, line.allocation, line.text) for line in lines] == [
        (1, first.allocation, "a1"),
        (2, first.allocation, "a2"),
        (3, second.allocation, "b1"),
        (4, first.allocation, "a3"),
    ]
    assert (lines[0].start, lines[0].stop, lines[0].attempt, lines[0].node_name) == (0, 1, 1, "a")
    assert not any(line.missing or line.continues for line in lines)


def test_what_comes_twice_counts_once_and_what_is_missing_is_known(node, run, works):
    work = works[0]
    tell(node, (work, 0, "one\n"))
    tell(node, (work, 0, "one\n"))
    tell(node, (work, 0, "one\ntwo\n"))
    tell(node, (work, 20, "late\n"))
    tell(node, (work, 8, "between\n"))
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    assert [(line.text, line.missing) for line in lines] == [("one", 0), ("two", 0), ("late", 12)]


def test_a_line_in_two_pieces_goes_on(node, run, works):
    tell(node, (works[0], 0, "half"), (works[1], 0, "other\n"))
    tell(node, (works[0], 4, " and half\nnext\n"))
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    said = [("half", False), ("other", False), (" and half", True), ("next", False)]
    assert [(line.text, line.continues) for line in lines] == said


def test_only_a_live_allocation_of_this_very_node_is_heard(node, run, works):
    other = child("b")
    first, second, third, _ = works
    node.report(done(first))
    node.release(second.allocation)
    assert tell(other, (third, 0, "not mine\n")) == [third.allocation]
    assert tell(node, (first, 0, "late\n"), (second, 0, "x\n"), (third, 0, "mine\n"), (NO_ROW, 0, "?\n")) == [
        first.allocation,
        second.allocation,
        NO_ROW,
    ]
    assert texts(run) == ["mine"]


def test_a_revoked_key_is_not_heard(node, run, works):
    keys.revoke(node.caller.access_key)
    with pytest.raises(Unauthenticated):
        tell(node, (works[0], 0, "x\n"))
    assert texts(run) == []


def test_several_nodes_are_written_together_and_one_may_be_refused_alone(node, run, works):
    stranger = child("b")
    keys.revoke(stranger.caller.access_key)
    said = messages.read_logs({"logs": [[works[0].allocation, 0, "x\n"]]})
    refused, taken = logs.take_all([(stranger.caller, said), (node.caller, said)])
    assert isinstance(refused, Unauthenticated)
    assert taken == {"gone": []}
    assert texts(run) == ["x"]


def test_a_message_that_comes_twice_at_once_counts_once(node, run, works):
    said = messages.read_logs({"logs": [[works[0].allocation, 0, "x\n"]]})
    assert logs.take_all([(node.caller, said)] * 2) == [{"gone": []}] * 2
    assert logs.take_all([]) == []
    assert texts(run) == ["x"]
    assert log_lines.newest(run.pk) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "logs"),
        ({"logs": {}}, "logs"),
        ({"logs": [[1, 0]]}, "logs[0]"),
        ({"logs": ["text"]}, "logs[0]"),
        ({"logs": [["1", 0, "x"]]}, "logs[0]"),
        ({"logs": [[1, -1, "x"]]}, "logs[0]"),
        ({"logs": [[1, 2**60, "x"]]}, "logs[0]"),
        ({"logs": [[1, 0, None]]}, "logs[0]"),
        ({"logs": [[1, 0, "x" * (LOG_LIMIT + 1)]]}, "logs[0]"),
        ({"logs": [[number, 0, "x" * LOG_LIMIT] for number in range(LOG_CHARACTERS // LOG_LIMIT + 1)]}, "logs"),
        ({"logs": [[number, 0, "x"] for number in range(LOG_PIECES + 1)]}, "logs"),
        ({"logs": [[1, 0, "x"], [1, 1, "y"]]}, "logs"),
    ],
)
def test_what_is_no_such_message_is_refused_by_its_field(body, field):
    with pytest.raises(FieldError) as raised:
        messages.read_logs(body)
    assert raised.value.field == field


def test_characters_that_cannot_be_stored_are_replaced_and_others_survive(node, run, works):
    text = "nul \x00 alone \ud800 escape \x1b[31m bell \a tab \t 好 \U0001f600\r\n"
    tell(node, (works[0], 0, text), (works[1], 0, "\n\n"))
    assert texts(run) == ["nul � alone � escape \x1b[31m bell \a tab \t 好 \U0001f600", "", ""]
    mark = LogMark.objects.get(pk=works[0].allocation)
    assert mark.end == len(text)


def test_of_an_allocation_the_newest_characters_are_kept(node, run, works, settings):
    settings.CASCADE = settings.CASCADE.model_copy(update={"shard_log_limit": 20_000})
    each = "x" * 4999 + "\n"
    for number in range(20):
        tell(node, (works[0], number * 5000, f"{number:04}{each[4:]}"))
        kept = sum(LogPiece.objects.filter(allocation=works[0].allocation).values_list("size", flat=True))
        assert kept <= 25_000
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    assert [int(line.text[:4]) for line in lines] == list(range(20 - len(lines), 20))
    assert len(lines) >= 4
    # Numbers stay what they were, and the hole is known.
    assert [line.number for line in lines] == list(range(21 - len(lines), 21))
    assert [line.missing for line in lines] == [5000 * (20 - len(lines)), *[0] * (len(lines) - 1)]


def test_a_parent_that_keeps_none_says_so_and_takes_none(node, run, works, settings):
    assert node.beat()["logs"] is True
    settings.CASCADE = settings.CASCADE.model_copy(update={"shard_log_limit": 0})
    assert node.beat()["logs"] is False
    assert tell(node, (works[0], 0, "x\n")) == []
    assert texts(run) == []
    node.report({**done(works[0]), "log": "from the report\n"})
    assert texts(run) == ["from the report"]


# With the report


def test_the_report_brings_what_was_not_told_yet(node, run, works):
    told, silent, lossy, torn = works
    tell(node, (told, 0, "one\n"), (lossy, 0, "a\n"), (torn, 0, "beg"))
    node.report(
        {**done(told), "log": "one\ntwo\n"},
        {**done(silent), "log": "short\n"},
        {**done(lossy), "log": LOG_CUT + "z\n", "log_start": 100},
        {**failure(torn), "log": "begin\n"},
    )
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    by: dict[int, list[tuple[str, int]]] = {}
    for line in lines:
        by.setdefault(line.allocation, []).append((line.text, line.missing))
    assert by[told.allocation] == [("one", 0), ("two", 0)]
    assert by[silent.allocation] == [("short", 0)]
    assert by[lossy.allocation] == [("a", 0), ("z", 98)]
    assert by[torn.allocation] == [("beg", 0), ("in", 0)]
    assert not LogMark.objects.exists()
    assert Allocation.objects.get(pk=told.allocation).log == "one\ntwo\n"


def test_a_long_log_that_only_the_report_brings_is_there_without_its_mark(node, run, works):
    text = "".join(f"{number:09}\n" for number in range(1600))[len(LOG_CUT) :]
    node.report({**done(works[0]), "log": LOG_CUT + text, "log_start": 10_000})
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    assert len(lines) == 1600
    assert (lines[0].missing, lines[0].text) == (10_000, text.partition("\n")[0])
    # It is in the database once.
    assert LogPiece.objects.get().text is None


def test_a_report_that_is_repeated_late_or_refused_adds_no_lines(node, run, works):
    entry = {**done(works[0]), "log": "once\n"}
    assert node.statuses(entry) == node.statuses(entry) == [200]
    node.release(works[1].allocation)
    assert node.statuses({**done(works[1]), "log": "late\n"}) == [409]
    assert texts(run) == ["once"]


def test_reports_without_logs_cost_no_statement_more(node, run, works):
    with CaptureQueriesContext(connection) as silent:
        node.report(done(works[0]))
    assert not [query for query in silent if "log" in query["sql"].lower().replace('"log"', "")]
    with CaptureQueriesContext(connection) as talking:
        node.report({**done(works[1]), "log": "x\n"})
    assert len(talking) > len(silent)


def test_a_run_has_news_when_something_of_it_was_committed(node, run, works):
    other = events.log_version(run.pk + 1)
    before, overview = events.log_version(run.pk), events.version()
    tell(node, (works[0], 0, "x\n"))
    assert (told := events.log_version(run.pk)) > before
    assert events.version() == overview
    node.report({**done(works[0]), "log": "x\ny\n"})
    assert events.log_version(run.pk) > told
    assert events.log_version(run.pk + 1) == other
    # In another process, which does not say whose.
    events.hear([events.LOGGED], [])
    assert events.log_version(run.pk + 1) > other


# What is read


@pytest.fixture
def talked(node: Child, run: Run, works: list[Work]) -> list[Work]:
    """100 lines of the first shard, 50 of the second, three at a time by turns."""
    first, second, *_ = works
    ends = {"Alpha": 0, "beta": 0}
    for number in range(50):
        for work, name, some in ((first, "Alpha", 2), (second, "beta", 1)):
            text = "".join(f"{name} {number} {part}\n" for part in range(some))
            tell(node, (work, ends[name], text))
            ends[name] += len(text)
    return works


def numbers(body: dict[str, Any]) -> list[int]:
    return [line["number"] for line in body["results"]]


def test_late_joiners_get_the_newest_lines_older_ones_on_demand_and_can_follow(api: Api, node, run, talked):
    body = api.get(f"runs/{run.pk}/logs?limit=40").body
    assert (body["newest"], numbers(body)) == (150, list(range(111, 151)))
    older = api.get(body["previous"].partition("/api/v1/")[2]).body
    assert numbers(older) == list(range(71, 111))
    first = api.get(f"runs/{run.pk}/logs?before=31&limit=40").body
    assert (numbers(first), first["previous"]) == (list(range(1, 31)), None)
    assert api.get(body["next"].partition("/api/v1/")[2]).body["results"] == []
    tell(node, (talked[2], 0, "new\n"))
    new = api.get(body["next"].partition("/api/v1/")[2]).body
    assert [(line["number"], line["text"]) for line in new["results"]] == [(151, "new")]
    assert numbers(api.get(f"runs/{run.pk}/logs?after=10&limit=5").body) == [11, 12, 13, 14, 15]
    assert numbers(api.get(f"runs/{run.pk}/logs?after=10&before=13").body) == [11, 12]


@pytest.mark.parametrize("pieces", [250, 7, 1])
@pytest.mark.parametrize("window", [50_000, 5, 1])
def test_pages_of_any_size_meet_in_either_direction(run, talked, pieces, window, monkeypatch):
    monkeypatch.setattr(log_lines, "PIECES", pieces)
    monkeypatch.setattr(log_lines, "WINDOW", window)
    for wanted in (log_lines.EVERYTHING, log_lines.Wanted(search="BETA")):
        every = [line.number for line in log_lines.every(run.pk, wanted)]
        assert len(every) == (50 if wanted.search else 150)
        at, before = 0, None
        ahead: list[int] = []
        back: list[int] = []
        while (page := log_lines.since(run.pk, at, 13, wanted)).lines:
            ahead += [line.number for line in page.lines]
            at = page.last
        while (page := log_lines.latest(run.pk, before, 13, wanted)).lines:
            back = [line.number for line in page.lines] + back
            before = page.first
        assert ahead == back == every


def test_a_look_that_takes_too_long_says_how_far_it_came(run, talked, monkeypatch):
    monkeypatch.setattr(log_lines, "WINDOW", 10)
    wanted = log_lines.Wanted(search="beta 3 ")
    found, before, pages = [], None, 0
    while before is None or before > 1:
        page = log_lines.latest(run.pk, before, 5, wanted, seconds=0)
        found += [line.text for line in page.lines]
        before, pages = page.first, pages + 1
    assert (found, pages) == (["beta 3 0"], 15)
    page = log_lines.since(run.pk, 0, 5, wanted, seconds=0)
    assert (page.lines, page.last) == ([], 10)


def test_a_page_of_long_lines_has_fewer_of_them(run, talked, monkeypatch):
    monkeypatch.setattr(log_lines, "CHARACTERS", 100)
    assert [line.number for line in log_lines.latest(run.pk, None, 50).lines][-1] == 150
    ahead = log_lines.since(run.pk, 0, 50)
    assert 5 < len(ahead.lines) < 20
    assert log_lines.since(run.pk, ahead.last, 50).lines[0].number == ahead.lines[-1].number + 1


def test_lines_are_filtered(api: Api, node, run, talked):
    first, second, third, _ = talked
    shard = Allocation.objects.get(pk=second.allocation).shard_id
    path = f"runs/{run.pk}/logs"
    assert len(api.get(f"{path}?shard={shard}").body["results"]) == 50
    assert len(api.get(f"{path}?allocation={first.allocation}").body["results"]) == 100
    assert len(api.get(f"{path}?item=1").body["results"]) == 50
    assert len(api.get(f"{path}?node={node.id}").body["results"]) == 150
    assert api.get(f"{path}?node={NO_ROW}").body["results"] == []
    assert {line["allocation"] for line in api.get(f"{path}?search=BETA").body["results"]} == {second.allocation}
    assert numbers(api.get(f"{path}?search=alpha 7 1&item=0").body) == [23]
    tell(node, (third, 0, "GRÜSSE aus Zürich 100%_\n"))
    node.report({**done(talked[3]), "log": "Only its report has ZÜRICH\nand this\n"})
    assert [line["text"] for line in api.get(f"{path}?search=zürich").body["results"]] == [
        "GRÜSSE aus Zürich 100%_",
        "Only its report has ZÜRICH",
    ]
    assert len(api.get(f"{path}?search=0%25_").body["results"]) == 1
    assert len(api.get(f"{path}?search=ü").body["results"]) == 2


def test_both_downloads_are_text_with_as_many_lines_as_were_asked_for(api: Api, node, run, talked):
    tell(node, (talked[2], 4, "1%\r2%\r3%\n"))
    view = api.get(f"runs/{run.pk}/logs?search=beta&format=text").response
    assert view["Content-Type"] == "text/plain; charset=utf-8"
    assert view["Content-Disposition"] == f'attachment; filename="run-{run.pk}-log.txt"'
    assert len(b"".join(view.streaming_content).decode().splitlines()) == 50
    every = b"".join(api.get(f"runs/{run.pk}/logs?format=text").response.streaming_content).decode().splitlines()
    assert len(every) == 151
    number, _at, name, items, attempt, text = every[0].split("\t")
    assert (number, name, items, attempt, text) == ("1", "a", "[0, 1)", "1", "Alpha 0 0")
    assert every[-1].endswith("[… 4 characters are missing] 1%␍2%␍3%")
    last = b"".join(api.get(f"runs/{run.pk}/logs?format=text&limit=2").response.streaming_content).decode()
    assert [line.split("\t")[0] for line in last.splitlines()] == ["150", "151"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=x", "after"),
        ("before=-1", "before"),
        ("limit=0", "limit"),
        ("shard=1.5", "shard"),
        ("format=csv", "format"),
        ("search=" + "x" * 201, "search"),
        ("search=a%0Ab", "search"),
        ("serach=a", "serach"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_by_its_field(api: Api, run, query, field):
    answer = api.get(f"runs/{run.pk}/logs?{query}")
    assert (answer.status, answer.body["field"]) == (400, field)


def test_a_run_without_lines_a_run_that_is_not_there_and_a_stranger(api: Api, run, client):
    body = api.get(f"runs/{run.pk}/logs").body
    assert (body["newest"], body["previous"], body["results"]) == (0, None, [])
    assert api.get(f"runs/{NO_ROW}/logs").status == 404
    assert api.get(f"runs/{run.pk}/logs?search=%00").status == 200
    client.logout()
    assert client.get(f"/api/v1/runs/{run.pk}/logs").status_code == 401


def test_the_command_shows_lines_for_people_and_scripts(node, run, works):
    tell(node, (works[0], 0, "hello\n\x1b]0;title\x07 there\n"), (works[1], 5, "other\n"))
    shown = [line.partition(" ")[2] for line in command("run", "logs", str(run.pk)).splitlines()]
    assert shown == ["a 0 | hello", "a 0 | \\x1b]0;title\\x07 there", "5 characters are missing]", "a 1 | other"]
    assert len(command("run", "logs", str(run.pk), "--lines", "1", "--item", "0").splitlines()) == 1
    lines = [json.loads(line) for line in command("run", "logs", str(run.pk), "--lines", "0", "--json").splitlines()]
    assert [(line["number"], line["allocation"]) for line in lines][-1] == (3, works[1].allocation)
    assert "OTHER" not in command("run", "logs", str(run.pk), "--search", "HELLO").upper()
    assert "--lines" in ended(2, "run", "logs", str(run.pk), "--lines", "-1")
    ended(3, "run", "logs", str(NO_ROW))


# How long


def test_logs_go_with_their_run(clock: Clock, node, run, works, folder):
    tell(node, (works[0], 0, "x\n"), (works[1], 0, "y\n"))
    node.report(*({**done(work), "log": "x\nz\n"} for work in works))
    with saver() as made:
        save(made)
        other = submit(1)
        (work,) = node.works()
        tell(node, (work, 0, "stays\n"))
        Receipt.objects.filter(saved_at__isnull=False).update(payload=None, purged_at=timezone.now())
        clock.forward(1000 * 86_400)
        counts = pruning.prune(timezone.now(), dry_run=True)
        assert (counts["runs"], counts["log_pieces"]) == (1, 6)
        assert pruning.prune(timezone.now())["log_pieces"] == 6
    assert texts(run) == []
    assert not RunLog.objects.filter(pk=run.pk).exists()
    assert texts(other) == ["stays"]


@pytest.mark.django_db(transaction=True)
def test_nodes_that_tell_and_report_at_once_leave_each_line_once_and_numbers_without_holes():
    nodes = [child(name, 4) for name in ("a", "b", "c", "d")]
    run = submit(16)
    works = {node.id: node.works() for node in nodes}
    assert sum(map(len, works.values())) == 16

    def talk(node: Child) -> None:
        mine = works[node.id]
        for number in range(5):
            tell(node, *((work, 2 * number, f"{number}\n") for work in mine))
        node.report(*({**done(work), "log": "0\n1\n2\n3\n4\n5\n"} for work in mine))

    assert at_once(*(lambda node=node: talk(node) for node in nodes)) == [None] * 4
    lines = list(log_lines.every(run.pk, log_lines.EVERYTHING))
    assert [line.number for line in lines] == list(range(1, 16 * 6 + 1))
    for work in (work for mine in works.values() for work in mine):
        mine = [line for line in lines if line.allocation == work.allocation]
        assert [line.text for line in mine] == ["0", "1", "2", "3", "4", "5"]
        assert not any(line.missing or line.continues for line in mine)
