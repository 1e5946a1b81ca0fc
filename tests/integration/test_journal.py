"""The journal: what is written into it, by whom and how often, and its page."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api import journal_page
from dispatch import lifecycle, pruning
from dispatch.models import Run
from dispatch.watching import EACH, NodeWatch
from nodes import journal, keys, registry
from nodes.models import JournalEntry, Node
from nodes.transactions import write
from tests.integration import factory, records
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

About = JournalEntry.About


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    journal.clear()
    yield
    journal.clear()


def told(about: str = "") -> list[tuple[str, str, str, int | None, int]]:
    """(about, word, node's name, run, count), oldest first."""
    journal.flush(now=True)
    entries = JournalEntry.objects.order_by("pk")
    return list(
        (entries.filter(about=about) if about else entries).values_list("about", "word", "name", "run", "count")
    )


def shown(browser: Client, query: str = "") -> list[int]:
    html = browser.get(f"/journal{query}").content.decode()
    return [int(found) for found in re.findall(r'id="entry-(\d+)"', html)]


# ---- what is written ----


def test_a_run_is_told_when_it_is_submitted_cancelled_and_retried(folder: object) -> None:
    cancelled = factory.submit(3, name="late")
    lifecycle.cancel(cancelled.pk)
    a = factory.child(capacity=2)
    failed = factory.submit(2, max_attempts=1)
    a.report(*[factory.partly(work, *range(work.start, work.stop)) for work in a.works()])
    lifecycle.retry(failed.pk)
    assert told("run") == [
        ("run", "submitted", "", cancelled.pk, 3),
        ("run", "cancelled", "", cancelled.pk, 0),
        ("run", "submitted", "", failed.pk, 2),
        ("run", "failed", "", failed.pk, 2),
        ("run", "retried", "", failed.pk, 2),
    ]


def test_attempts_that_fail_alike_are_one_entry_with_their_number(
    django_capture_on_commit_callbacks: Any, folder: object
) -> None:
    a = factory.child("a", capacity=3)
    run = factory.submit(3, max_attempts=1)
    works = a.works()
    with django_capture_on_commit_callbacks(execute=True):
        for work in works:
            a.report(factory.partly(work, work.start))
    assert told("work") == [("work", "failed", "a", run.pk, 3)]
    assert "no luck with i" in JournalEntry.objects.get(about="work").text


def test_work_that_goes_well_costs_the_journal_nothing(folder: object) -> None:
    a = factory.child(capacity=4)
    factory.submit(8)
    with CaptureQueriesContext(connection) as captured:
        while works := a.works():
            a.report(*[factory.done(work) for work in works])
    assert told("work") == []
    assert not [query for query in captured.captured_queries if "journal" in query["sql"]]


def test_a_lease_that_expires_is_told_of_its_node_and_run(clock: factory.Clock) -> None:
    a = factory.child("a", 2)
    run = factory.submit(2)
    a.works()
    clock.forward(31)
    assert lifecycle.expire(timezone.now()) == 2
    assert told("work") == [("work", "expired", "a", run.pk, 2)]


def test_keys_are_told_when_they_are_issued_and_once_when_they_are_revoked() -> None:
    _node, key = registry.add_node("a")
    keys.revoke(key.access_key)
    keys.revoke(key.access_key)
    assert told("key") == [("key", "issued", "a", None, 1), ("key", "revoked", "a", None, 1)]
    assert set(JournalEntry.objects.values_list("text", flat=True)) == {key.access_key}


def test_what_is_undone_was_never_told() -> None:
    def undone() -> None:
        with write():
            journal.record(About.CONFIGURATION, "released")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        undone()
    assert told() == []


# ---- nodes that come and go ----


def watched(watch: NodeWatch, now: dt.datetime, monotonic: float) -> list[tuple[str, str]]:
    before = set(JournalEntry.objects.values_list("pk", flat=True))
    watch.look(now, monotonic)
    return list(JournalEntry.objects.exclude(pk__in=before).order_by("pk").values_list("name", "word"))


def test_each_change_of_a_node_is_told_once() -> None:
    now, watch = timezone.now(), NodeWatch()
    at = records.node("a", last_beat_at=now)
    assert watched(watch, now, 100) == [("a", "online")]
    assert watched(watch, now, 102) == []
    registry.drain(at.pk)
    assert watched(watch, now, 104) == [("a", "draining")]
    registry.resume(at.pk)
    assert watched(watch, now + dt.timedelta(hours=1), 106) == [("a", "offline")]
    Node.objects.all().delete()
    assert watched(watch, now, 108) == [("a", "removed")]
    assert watched(watch, now, 110) == []


def test_states_of_all_are_those_of_each(settings: Any) -> None:
    now = timezone.now()
    for number, seconds in enumerate(
        (None, 0, settings.CASCADE.offline_seconds + 1, settings.CASCADE.patient_seconds + 1)
    ):
        beat = None if seconds is None else now - dt.timedelta(seconds=seconds)
        for dialect in Node.Dialect.values:
            for active, draining in ((True, False), (True, True), (False, False)):
                fields = {"dialect": dialect, "active": active, "draining": draining, "last_beat_at": beat}
                records.node(f"n{number}-{dialect}-{active}-{draining}", **fields)
    all_of_them = {(node.pk, node.name, registry.state_of(node, now)) for node in Node.objects.all()}
    assert set(registry.states(now)) == all_of_them
    assert {state for _, _, state in all_of_them} == {"online", "offline", "draining", "inactive"}


def test_nodes_that_beat_again_after_a_restart_were_never_gone() -> None:
    now = timezone.now()
    records.node("a", last_beat_at=now)
    records.node("b", last_beat_at=now)
    watched(NodeWatch(), now, 100)
    again, later = NodeWatch(), now + dt.timedelta(hours=1)
    again.start_anew(500)
    assert watched(again, later, 501) == []
    Node.objects.filter(name="a").update(last_beat_at=later)
    assert watched(again, later, 600) == [("b", "offline")]


def test_many_nodes_that_go_at_once_share_an_entry() -> None:
    now, watch = timezone.now(), NodeWatch()
    for number in range(EACH + 5):
        records.node(f"n{number}", last_beat_at=now)
    assert watched(watch, now, 100) == [("", "online")]
    entry = JournalEntry.objects.get()
    assert (entry.count, entry.text.startswith("n0, n1, ")) == (EACH + 5, True)


# ---- what is kept ----


def test_old_entries_are_pruned_with_the_logs(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"log_days": 14})
    now = timezone.now()
    for days in (1, 13, 15, 40):
        JournalEntry.objects.create(about="run", word="completed", at=now - dt.timedelta(days=days))
    assert pruning.prune(now, dry_run=True)["journal"] == 2
    assert pruning.prune(now)["journal"] == 2
    assert JournalEntry.objects.count() == 2


# ---- the page ----


def entries(about: str, count: int, word: str = "completed") -> list[int]:
    return [JournalEntry.objects.create(about=about, word=word, text=f"{about} {at}").pk for at in range(count)]


def test_it_is_filtered_and_paged_by_its_address(browser: Client) -> None:
    runs, of_nodes = entries("run", 70)[::-1], entries("node", 3, "offline")[::-1]
    assert shown(browser) == [*of_nodes, *runs[:47]]
    assert shown(browser, "?about=node") == of_nodes
    assert shown(browser, "?about=run") == runs[:50]
    html = browser.get("/journal?about=run").content.decode()
    (older,) = re.findall(r'rel="next" href="(\?[^"]+)"', html)
    assert shown(browser, older.replace("&amp;", "&")) == runs[50:]


@pytest.mark.parametrize("query", ["?about=nonsense", "?before=x", "?before=-1", "?about=%00"])
def test_an_address_with_nonsense_leads_to_all_of_it(browser: Client, query: str) -> None:
    made = entries("run", 2)[::-1]
    assert shown(browser, query) == made


def test_links_lead_to_what_still_is_there(browser: Client) -> None:
    at, of = records.node("here"), records.run(name="kept")
    JournalEntry.objects.create(about="work", word="expired", node=at.pk, name="here", run=of.pk)
    JournalEntry.objects.create(about="work", word="expired", node=10**9, name="gone", run=10**9)
    html = browser.get("/journal").content.decode()
    assert f'href="/nodes/{at.pk}"' in html
    assert f'href="/runs/{of.pk}"' in html
    assert "gone" in html
    assert "/nodes/1000000000" not in html
    assert "/runs/1000000000" not in html


def test_texts_are_text(browser: Client) -> None:
    evil = "<img src=x onerror=alert(1)>"
    JournalEntry.objects.create(about="work", word="failed", name=evil, text=evil, run=records.run(name=evil).pk)
    html = browser.get("/journal").content.decode()
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x") >= 3


def test_it_costs_three_queries_however_much_there_is(browser: Client) -> None:
    def queries() -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            journal_page.views(journal_page.newest("work"))
        return [query["sql"] for query in captured.captured_queries]

    at, of = records.node(), records.run()
    JournalEntry.objects.create(about="work", word="expired", node=at.pk, run=of.pk)
    few = queries()
    for number in range(60):
        JournalEntry.objects.create(about="work", word="expired", node=at.pk, run=records.run(1).pk, count=number)
    many = queries()
    assert len(many) == len(few) == 3
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN QUERY PLAN " + many[0])
            plan = str(cursor.fetchall())
        assert "nodes_journ_about" in plan
        assert "TEMP B-TREE" not in plan


def test_a_thousand_notes_are_a_statement(folder: object) -> None:
    """The sums are bounded by what is named, not by how often it happened."""
    began = time.time()
    for _ in range(1000):
        journal.note(About.WORK, "failed", node=1, run=2, text="no luck")
    assert journal.flush(now=True) == 1
    entry = JournalEntry.objects.get()
    assert (entry.count, entry.text) == (1000, "no luck")
    assert entry.at.timestamp() >= began - 1


def test_a_run_from_above_is_no_news_in_a_relay(settings: Any, folder: object) -> None:
    from dispatch.models import Origin

    settings.CASCADE = settings.CASCADE.model_copy(update={"role": "relay"})
    a = factory.child(capacity=2)
    own, above = factory.submit(1, max_attempts=1), factory.submit(1, max_attempts=1)
    Origin.objects.create(run=above, parent="p", allocation=1, above=1, start=0)
    a.report(*[factory.partly(work, work.start) for work in a.works()])
    assert {Run.objects.get(pk=pk).state for pk in (own.pk, above.pk)} == {"failed"}
    assert [run for _, word, _, run, _ in told("run") if word == "failed"] == [own.pk]


# ---- over HTTP ----


def test_the_api_has_it_newest_first_filtered_and_in_pages(api: Api) -> None:
    entries("run", 3)
    (offline,) = entries("node", 1, "offline")
    JournalEntry.objects.filter(pk=offline).update(node=7, name="berlin", run=None)
    found = api.get("journal?limit=2").body
    assert (found["count"], len(found["results"])) == (4, 2)
    assert found["results"][0] == {
        "id": offline,
        "at": found["results"][0]["at"],
        "about": "node",
        "word": "offline",
        "node": 7,
        "node_name": "berlin",
        "run": None,
        "count": 1,
        "text": "node 0",
    }
    filtered = api.get("journal?about=node&node=7&word=offline").body["results"]
    assert [each["id"] for each in filtered] == [offline]
    assert api.get("journal?node=8").body["count"] == 0
    assert api.get(f"journal/{offline}").body["word"] == "offline"


def test_what_the_api_does_not_know_is_named(api: Api) -> None:
    wrong = api.get("journal?about=weather")
    assert (wrong.status, wrong.body["field"]) == (400, "about")


def test_the_api_tells_no_stranger(client: Client) -> None:
    assert client.get("/api/v1/journal").status_code == 401
