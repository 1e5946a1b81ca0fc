"""The overview: what it says, what reading it costs, and what hostile texts on it do."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api import overview as overviews
from api.overview import ALLOCATIONS_SHOWN, ENDED_SHOWN, ERROR_SHOWN, Overview, live_allocations
from api.parts import HistoryView, PaceView, RunView, iso
from dispatch.models import Run, Shard
from nodes.models import JournalEntry, Node, Quota
from tests.integration.records import allocation, hold, node, run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("overview")]

EVIL = "<img src=x onerror=alert(1)>\"'&‮عربي" + "W" * 60


def row(browser: Client, part: str) -> str:
    """The text of one part of the page, tags taken out."""
    html = browser.get("/").content.decode()
    found = re.search(rf'<(\w+)[^>]* id="{part}".*?</\1>', html, re.DOTALL)
    assert found, f"no part {part}"
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", found[0])).strip()


# ---- who may look ----


def test_a_stranger_is_sent_to_sign_in(client: Client) -> None:
    response = client.get("/")
    assert response.status_code == 302
    assert response["Location"] == "/admin/login/?next=/"


def test_somebody_who_is_not_staff_is_sent_to_sign_in(client: Client) -> None:
    client.force_login(User.objects.create_user("bert"))
    assert client.get("/")["Location"].startswith("/admin/login/")


def test_the_page_is_kept_by_no_cache(browser: Client) -> None:
    assert "no-store" in browser.get("/")["Cache-Control"]


# ---- what it says ----


def test_a_node_is_shown_with_its_capacity_and_quotas(browser: Client) -> None:
    at = node(cpu=37.4, memory=41, carrier="push", version="0.1.0")
    Quota.objects.create(node=at, task_type="data_import", slots=4, limit=6)
    of = run()
    for start in (0, 10, 20, 30, 40):
        allocation(of, at, start, start + 10)
    allocation(of, at, 50, 60, "pending")
    allocation(of, at, 60, 70, "completed")
    text = row(browser, f"node-{at.id}")
    for words in ("frankfurt-1", "online", "5/8", "+1", "data_import 5/4 (6)", "37 %", "41 %", "push · 0.1.0"):
        assert words in text
    assert "6/8" not in text


def test_a_quota_of_one_item_counts_that_item_only(browser: Client) -> None:
    at = node()
    Quota.objects.create(node=at, task_type="data_import", slots=4)
    Quota.objects.create(node=at, task_type="data_import", item="AAPL", slots=2)
    of = run()
    allocation(of, at, 0, 1, item="AAPL")
    allocation(of, at, 1, 2)
    text = row(browser, f"node-{at.id}")
    assert "data_import 2/4" in text
    assert "data_import[AAPL] 1/2" in text


def test_work_without_a_quota_is_shown_too(browser: Client) -> None:
    at = node()
    allocation(run(type="echo"), at, 0, 1)
    assert "echo 1 no quota" in row(browser, f"node-{at.id}")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "online"),
        ({"draining": True}, "draining"),
        ({"last_beat_at": None}, "offline"),
        ({"last_beat_at": timezone.now() - dt.timedelta(hours=1), "draining": True}, "offline"),
        ({"active": False}, "inactive"),
    ],
)
def test_the_state_of_a_node(browser: Client, fields: dict[str, Any], word: str) -> None:
    at = node(**fields)
    glyph = {"online": "✓", "draining": "◔", "offline": "?", "inactive": "–"}[word]
    assert f"{glyph} {word}" in row(browser, f"node-{at.id}")


def test_a_silent_node_goes_offline_without_a_write(overview: Overview, settings: Any) -> None:
    at = node()
    now = timezone.now()
    limit = dt.timedelta(seconds=settings.CASCADE.offline_seconds)
    assert "online" in overview.look(now).parts[f"node-{at.id}"].html
    assert "offline" in overview.look(now + limit + dt.timedelta(seconds=1)).parts[f"node-{at.id}"].html


def test_a_run_in_progress_tells_its_pace_and_what_is_left(overview: Overview) -> None:
    now = timezone.now()
    at, of = node(), run(saved=100, created_at=now - dt.timedelta(hours=1), cut=200)
    allocation(of, at, 100, 200)
    overview.look(now)
    for second in range(1, 11):
        Run.objects.filter(pk=of.pk).update(saved=100 + 4 * second, rows=1000 * second)
        overview.look(now + dt.timedelta(seconds=second))
    view = overview.look(now + dt.timedelta(seconds=10)).parts[f"run-{of.id}"].view
    assert isinstance(view, RunView)
    assert view.progress == "140/500 · 4.0/s · about 2 min left"
    assert view.rows == "10,000"


def test_below_twenty_items_nothing_is_promised(browser: Client) -> None:
    of = run(saved=19)
    allocation(of, node(), 19, 30)
    assert "19/500 · estimating…" in row(browser, f"run-{of.id}")


def test_failures_are_in_the_row_and_in_the_totals(browser: Client) -> None:
    of = run(state="partial", saved=480, failed=17, quarantined=3, ended_at=timezone.now())
    text = row(browser, f"run-{of.id}")
    assert "✕ partial" in text
    assert " 20 " in text
    assert re.search(r"Failed in 1 h ✕ 20", row(browser, "totals"))


def test_failures_of_yesterday_do_not_redden_the_totals(browser: Client) -> None:
    run(state="failed", failed=500, ended_at=timezone.now() - dt.timedelta(days=1))
    assert "Failed in 1 h 0" in row(browser, "totals")


def test_the_bar_of_a_run_is_cut_into_saved_failed_spooled_and_in_flight() -> None:
    now = timezone.now()
    of = run(100, saved=50, failed=10)
    Shard.objects.create(run=of, start=60, stop=65, state="spooled")
    allocation(of, node(), 65, 85)
    view = Overview().look(now).parts[f"run-{of.id}"].view
    assert isinstance(view, RunView)
    assert [(piece.kind, piece.x, piece.width) for piece in view.bar] == [
        ("saved", "0.00", "50.00"),
        ("failed", "50.00", "10.00"),
        ("spooled", "60.00", "5.00"),
        ("used", "65.00", "20.00"),
    ]
    assert view.label == "60 of 100 items: 50 saved, 5 to be saved, 20 in flight, 10 failed"


def test_the_last_shards_on_two_nodes_do_not_overfill_the_bar() -> None:
    of = run(100, saved=90)
    for name in ("one", "two"):
        allocation(of, node(name), 90, 100)
    view = Overview().look().parts[f"run-{of.id}"].view
    assert isinstance(view, RunView)
    assert sum(float(piece.width) for piece in view.bar) == pytest.approx(100)
    assert view.label == "90 of 100 items: 90 saved, 10 in flight"


@pytest.mark.parametrize(
    ("fields", "labels", "words"),
    [
        ({"last_beat_at": None}, {}, "no node online"),
        ({"executors": ["echo"]}, {}, "no node online runs data_import"),
        ({"labels": {"region": "us"}}, {"region": "eu"}, "no node online has the labels region=eu"),
        ({}, {}, "waiting for a free slot"),
    ],
)
def test_a_run_that_waits_says_for_what(
    browser: Client, fields: dict[str, Any], labels: dict[str, str], words: str
) -> None:
    node(**fields)
    of = run(labels=labels)
    assert f"0/500 · {words} " in row(browser, f"run-{of.id}")


def test_a_limit_of_nought_everywhere_is_named_as_what_a_run_waits_for(browser: Client) -> None:
    Quota.objects.create(node=node(), task_type="data_import", slots=0, limit=0)
    of = run()
    assert "every node&#x27;s limit for data_import is 0" in row(browser, f"run-{of.id}")


def test_an_allocation_shows_its_range_its_reason_and_its_error(browser: Client) -> None:
    of = run(name="nightly")
    one = allocation(
        of, node(), 120, 130, "failed", reason="free capacity, most_free: 3 of 8", error="FileNotFoundError: GE.csv"
    )
    text = row(browser, f"allocation-{one.id}")
    for words in ("nightly", "[120, 130)", "frankfurt-1", "✕ failed", "most_free: 3 of 8", "FileNotFoundError: GE.csv"):
        assert words in text


def test_an_allocation_outlives_its_node_on_the_page(browser: Client) -> None:
    one = allocation(run(), None, 0, 1, "expired")
    assert "removed ? expired" in row(browser, f"allocation-{one.id}")


def test_a_long_error_is_cut(browser: Client) -> None:
    allocation(run(), node(), 0, 1, "failed", error="x" * 50_000)
    html = browser.get("/").content.decode()
    assert "x" * ERROR_SHOWN + "…" in html
    assert "x" * (ERROR_SHOWN + 1) not in html


def test_throughput_counts_what_runs_gained_between_two_looks() -> None:
    fresh, now = Overview(), timezone.now().replace(second=0, microsecond=0)
    of, at = run(10_000, created_at=now - dt.timedelta(hours=1), saved=1000, rows=1), dt.timedelta(seconds=1)
    fresh.look(now)
    for second in range(1, 31):
        Run.objects.filter(pk=of.pk).update(saved=1000 + 10 * second, rows=1 + 1000 * second)
        view = fresh.look(now + second * at).parts["throughput"].view
    assert isinstance(view, PaceView)
    items, failed, rows = view.curves
    assert float(items.now) == pytest.approx(10, rel=0.15)
    assert float(rows.now.replace(",", "")) == pytest.approx(1000, rel=0.15)
    assert items.peak == "10.0"
    assert (failed.now, failed.peak) == ("0", "0")


def test_the_curve_of_a_first_look_comes_from_what_has_been_done() -> None:
    now = timezone.now()
    of, at = run(), node()
    allocation(of, at, 0, 500, "completed", finished_at=now - dt.timedelta(seconds=100), rows=5000)
    view = Overview().look(now).parts["throughput"].view
    assert isinstance(view, PaceView)
    assert [curve.peak for curve in view.curves] == ["100", "0", "1,000"]


def test_failed_items_have_a_curve_and_numbers_of_their_own() -> None:
    fresh, now = Overview(), dt.datetime(2026, 1, 5, 12, 0, 0, tzinfo=dt.UTC)
    of = run(10_000, created_at=now - dt.timedelta(hours=1))
    fresh.look(now)
    for second in range(1, 61):
        Run.objects.filter(pk=of.pk).update(saved=6 * second, failed=2 * second, rows=60 * second)
        parts = fresh.look(now + dt.timedelta(seconds=second)).parts
    history = parts["history"].view
    assert isinstance(history, HistoryView)
    assert [each.at for each in history.moments[:2]] == ["2026-01-05T12:00:30.000Z", "2026-01-05T12:00:00.000Z"]
    middle = history.moments[0]
    assert (middle.items, middle.failed, middle.share, middle.rows) == ("8.0", "2.0", "25 %", "60.0")
    view = parts["throughput"].view
    assert isinstance(view, PaceView)
    assert [curve.peak for curve in view.curves] == ["8.0", "2.0", "60.0"]
    assert ">25 %<" in parts["history"].html
    assert middle.waiting == "9,528"  # as of the last look in it
    assert history.moments[-1].waiting == ""


def test_the_run_that_has_waited_longest_for_its_first_slot_is_told_of(overview: Overview) -> None:
    now = timezone.now()
    assert "a run for" not in overview.look().parts["totals"].html
    run(5, created_at=now - dt.timedelta(minutes=9), saved=1)
    allocation(run(5, created_at=now - dt.timedelta(minutes=8)), node(), 0, 5)
    waits = run(5, created_at=now - dt.timedelta(minutes=3))
    run(5, created_at=now - dt.timedelta(minutes=1))
    html = overview.look().parts["totals"].html
    assert f'a run for <time datetime="{iso(waits.created_at)}" data-since>' in html


def test_numbers_are_drawn_anew_every_half_minute_only() -> None:
    fresh, now = Overview(), dt.datetime(2026, 1, 5, 12, 0, 15, tzinfo=dt.UTC)
    of = run(10_000)
    drawn = set()
    for second in range(30):
        Run.objects.filter(pk=of.pk).update(saved=10 * second)
        drawn.add(id(fresh.look(now + dt.timedelta(seconds=second)).parts["history"]))
    assert len(drawn) <= 2


def test_the_first_steps_are_ticked_from_facts_and_go_when_a_row_is_saved(overview: Overview, browser: Client) -> None:
    def ticked() -> list[str]:
        return re.findall(r'<li class="(done|)">', browser.get("/").content.decode())

    assert ticked() == ["", "", "", ""]
    at = node(last_beat_at=None)
    assert ticked() == ["done", "", "", ""]
    assert f'<a href="/nodes/{at.pk}">its page</a>' in browser.get("/").content.decode()
    Node.objects.update(last_beat_at=timezone.now())
    assert ticked() == ["done", "done", "", ""]
    of = run(5)
    assert ticked() == ["done", "done", "done", ""]
    Run.objects.filter(pk=of.pk).update(rows=1)
    assert ticked() == []
    Run.objects.all().delete()
    assert ticked() == []


def test_what_happened_links_to_nodes_until_they_are_removed(overview: Overview) -> None:
    at, of = node("berlin"), run(name="night")
    JournalEntry.objects.create(about="work", word="expired", node=at.pk, name="berlin", run=of.pk)
    (first,) = overview.look().lists["journal"]
    assert f'href="/nodes/{at.pk}"' in overview.look().parts[first].html
    assert "night" in overview.look().parts[first].html
    Node.objects.all().delete()
    JournalEntry.objects.create(about="node", word="removed", node=at.pk, name="berlin")
    snapshot = overview.look()
    assert len(snapshot.lists["journal"]) == 2
    assert 'href="/nodes/' not in snapshot.html("journal")


def test_a_parent_with_rows_shows_no_first_steps(browser: Client) -> None:
    run(rows=7, state="completed", ended_at=timezone.now())
    assert "First steps" not in browser.get("/").content.decode()


def test_a_first_node_is_added_on_the_page_and_gets_a_key_and_a_command(browser: Client) -> None:
    made = browser.post("/nodes/add", {"name": "paris", "capacity": "6"}, HTTP_HOST="localhost:8123").content.decode()
    at = Node.objects.get()
    assert (at.name, at.capacity) == ("paris", 6)
    key = at.keys.get().access_key
    assert f"CASCADE_ACCESS_KEY={key} CASCADE_SECRET_KEY=CS" in made
    assert "--parent http://localhost:8123" in made


@pytest.mark.parametrize(
    ("typed", "named"),
    [({"name": "a b/c", "capacity": "6"}, "a b/c"), ({"name": "x", "capacity": "many"}, "many"), ({}, "capacity")],
)
def test_a_first_node_that_cannot_be_is_explained_and_what_was_typed_stays(
    browser: Client, typed: dict[str, str], named: str
) -> None:
    answer = browser.post("/nodes/add", typed)
    html = answer.content.decode()
    assert answer.status_code == 400
    assert 'role="alert"' in html
    assert named in html
    assert not Node.objects.exists()
    assert all(f'value="{value}"' in html for value in typed.values())


def test_strangers_add_no_nodes(client: Client) -> None:
    assert client.post("/nodes/add", {"name": "x", "capacity": "1"}).status_code == 302
    assert not Node.objects.exists()


def test_runs_in_progress_stand_before_those_that_ended_last() -> None:
    now = timezone.now()
    older = run()
    early = run(state="completed", saved=500, ended_at=now)
    late = run(state="completed", saved=500, ended_at=now - dt.timedelta(minutes=5))
    newer = run()
    order = Overview().look().lists["runs"]
    assert order == tuple(f"run-{of.id}" for of in (newer, older, early, late))


def test_of_what_ended_and_what_was_allocated_only_the_latest_are_shown() -> None:
    at, ended = node(), timezone.now()
    for _ in range(30):
        of = run(1, state="completed", saved=1, ended_at=ended)
        allocation(of, at, 0, 1, "completed", finished_at=ended)
    lists = Overview().look().lists
    assert len(lists["runs"]) == ENDED_SHOWN
    assert len(lists["allocations"]) == ALLOCATIONS_SHOWN


def test_an_empty_page_shows_the_next_commands_and_the_real_address(browser: Client) -> None:
    html = browser.get("/", HTTP_HOST="localhost:8123").content.decode()
    assert 'data-copy="python manage.py node add child-1 --capacity 8 --quota data_import=4"' in html
    assert 'data-copy="python manage.py submit data_import --item AAPL --param source=sample --wait"' in html
    assert "http://localhost:8123" in html
    assert html.count("is-empty") == 4


def test_empty_states_go_when_there_is_something(browser: Client) -> None:
    allocation(run(), node(), 0, 1)
    JournalEntry.objects.create(about="node", word="online")
    assert "is-empty" not in browser.get("/").content.decode()


# ---- branches ----

BELOW = {"nodes": 4, "leaves": 3, "online": 3, "capacity": 12, "used": 7, "queued": 2, "depth": 2}
PARIS = {"name": "paris", "role": "relay", "state": "online", "capacity": 9, "used": 6, "queued": 2}
BERLIN = {"name": "berlin", "role": "child", "state": "offline", "capacity": 2, "used": 0, "queued": 0, "below": None}


def relay(name: str = "eu", **fields: Any) -> Any:
    children = [{**PARIS, "below": {**BELOW, "nodes": 2, "depth": 1}}, BERLIN]
    told = {**BELOW, "children": children, "more": 3}
    return node(name, **{"role": "relay", "subtree": told, "subtree_at": timezone.now(), **fields})


def test_below_a_relay_stands_its_branch_with_totals_and_what_it_named(overview: Overview, browser: Client) -> None:
    at, other = relay(), node("here")
    assert overview.look().lists["nodes"] == (f"node-{at.id}", f"branch-{at.id}", f"node-{other.id}")
    text = row(browser, f"branch-{at.id}")
    for words in ("below eu", "7/12 +2", "3 of 4 nodes online, 2 levels", "paris relay", "? offline", "and 3 more"):
        assert words in text
    html = browser.get("/").content.decode()
    assert f'data-below="/nodes/{at.id}/below?path=paris"' in html
    assert f'href="/nodes/{at.id}/below"' in html


def test_the_totals_are_those_of_the_whole_tree(browser: Client) -> None:
    relay()
    relay("us", last_beat_at=None)
    hold(node("here", capacity=3), 2)
    assert re.search(r"Nodes online 5 /11 Slots in use 9 /15 \+2 queued", row(browser, "totals"))


def test_a_branch_that_is_gone_says_how_old_the_picture_is(overview: Overview) -> None:
    hour_ago = timezone.now() - dt.timedelta(hours=1)
    at = relay(last_beat_at=hour_ago, subtree_at=hour_ago)
    assert "as it said <time" in overview.look().parts[f"branch-{at.id}"].html


def test_a_branch_is_drawn_anew_only_when_it_changes(overview: Overview) -> None:
    at = relay()
    first = overview.look().parts[f"branch-{at.id}"]
    Node.objects.update(subtree_at=timezone.now(), last_beat_at=timezone.now())
    assert overview.look().parts[f"branch-{at.id}"] is first


def test_names_below_are_text(browser: Client) -> None:
    at = relay()
    told = {**at.subtree, "children": [{**PARIS, "name": EVIL[:100], "below": None}, {**BERLIN, "name": EVIL[:100]}]}
    Node.objects.update(subtree=told)
    html = browser.get("/").content.decode()
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 2
    assert "path=%3Cimg" in html


@pytest.mark.django_db(transaction=True)
def test_the_page_of_a_branch_that_is_gone_shows_what_was_said_last(browser: Client) -> None:
    at = relay(last_beat_at=timezone.now() - dt.timedelta(hours=1))
    html = browser.get(f"/nodes/{at.id}/below").content.decode()
    for words in ("Below <bdi>eu</bdi>", "It is not there", "paris", "berlin", "3 of 4 nodes online"):
        assert words in html
    fragment = browser.get(f"/nodes/{at.id}/below?fragment").content.decode()
    assert "<html" not in fragment
    assert "berlin" in fragment
    answer = browser.get(f"/nodes/{at.id}/below?path=paris")
    assert answer.status_code == 504
    assert "eu is offline" in answer.content.decode()
    assert browser.get("/nodes/999999/below").status_code == 404
    assert "is no node's name" in browser.get(f"/nodes/{at.id}/below?path=a//b").content.decode()


# ---- what it costs ----


def _look_queries() -> list[str]:
    fresh = Overview()
    fresh.look()
    with CaptureQueriesContext(connection) as captured:
        fresh.look()
    return [query["sql"] for query in captured.captured_queries]


def test_queries_do_not_grow_with_nodes_and_runs_and_read_no_blobs() -> None:
    allocation(run(), node(), 0, 1)
    few = _look_queries()
    for number in range(20):
        at = node(f"n{number}")
        relay(f"r{number}")
        Quota.objects.create(node=at, task_type="data_import", slots=1)
        of = run(50, name=f"r{number}")
        allocation(of, at, 0, 10)
        allocation(of, at, 10, 20, "failed", error="x")
        JournalEntry.objects.create(about="work", word="failed", node=at.pk, run=of.pk)
    many = _look_queries()
    assert len(many) == len(few) <= 10
    for sql in many:
        assert '"items" AS' not in sql or "SUM(" in sql
        assert '"dispatch_run"."items"' not in sql
        assert "payload" not in sql
        assert '"log"' not in sql


def test_live_allocations_are_counted_from_their_own_index() -> None:
    with CaptureQueriesContext(connection) as captured:
        live_allocations()
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + captured.captured_queries[0]["sql"])
        plan = str(cursor.fetchall())
    assert "allocation_live" in plan


# ---- hostile texts ----


def test_markup_in_names_reasons_and_errors_stays_text(browser: Client) -> None:
    at = node(EVIL[:100], version=EVIL[:40], executors=[EVIL])
    Quota.objects.create(node=at, task_type=EVIL[:60], slots=1, item=EVIL)
    allocation(run(name=EVIL, type=EVIL[:60]), at, 0, 1, "failed", reason=EVIL, error=EVIL)
    run(type="echo", labels={EVIL: EVIL})
    html = browser.get("/").content.decode()
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") > 10


def test_nodes_that_are_too_many_to_be_shown_are_counted_and_their_list_is_linked(
    overview: Overview, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overviews, "NODES_SHOWN", 2)
    now = timezone.now()
    for number in range(3):
        node(f"shown-{number}", capacity=4, last_beat_at=now)
    late = node("silent", capacity=4, last_beat_at=None)
    one = run(2)
    allocation(one, Node.objects.get(name="shown-2"), 0, 1)
    allocation(one, late, 1, 2)
    snapshot = overview.look()
    assert len(snapshot.lists["nodes"]) == 2
    totals = snapshot.parts["totals"].view
    assert (totals.nodes, totals.online, totals.capacity, totals.used) == (4, 3, 12, 1)
    page = browser.get("/").content.decode()
    assert ">2/4<" in page
    assert 'href="/admin/nodes/node/"' in page
