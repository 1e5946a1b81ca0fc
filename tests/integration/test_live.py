"""The live page's socket, through the application as it is served."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.test import Client

from api import live
from api import overview as overviews
from api.parts import Seen
from cascade.asgi import application
from dispatch import events
from dispatch.models import Run
from nodes.models import JournalEntry, Node
from tests.integration import records

pytestmark = pytest.mark.django_db(transaction=True)

Frame = dict[str, Any]
PATIENCE = 10
"""Seconds that a frame may take on a slow machine."""


class Page:
    """A browser's page: opens the socket with a session, acknowledges what it gets."""

    def __init__(self, client: Client, origin: str = "http://localhost:8000", path: str = "/ws/live") -> None:
        cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())
        headers = [(b"host", b"localhost:8000"), (b"origin", origin.encode()), (b"cookie", cookie.encode())]
        self.socket = WebsocketCommunicator(application, path, headers=headers)

    async def open(self) -> tuple[bool, int | None]:
        return await self.socket.connect(timeout=PATIENCE)

    async def frame(self, seen: bool = True) -> Frame:
        text, begun = await self.socket.receive_from(timeout=PATIENCE), ""
        while text[0] == "+":
            assert len(text) <= live.PIECE + 1
            begun += text[1:]
            text = await self.socket.receive_from(timeout=PATIENCE)
        frame = json.loads(begun + text.removeprefix("="))
        if seen:
            await self.seen(frame)
        return frame

    async def seen(self, frame: Frame) -> None:
        await self.socket.send_to(text_data=json.dumps({"seen": frame["seq"]}))

    async def frame_with(self, part: str) -> Frame:
        """The next frame that brings ``part``."""
        return await self.until(lambda frame: part in frame["parts"])

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            frame = await self.frame()
            if wanted(frame):
                return frame
        raise AssertionError("no such frame")


@pytest.fixture
def looks(overview: overviews.Overview, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the database was read, by a renderer that remembers nothing of other tests."""
    times: list[float] = []
    read = overview.read

    def counted(*args: Any) -> Seen:
        times.append(time.monotonic())
        return read(*args)

    monkeypatch.setattr(overview, "read", counted)
    monkeypatch.setattr(live, "shared", live.Renderers())
    return times


@pytest_asyncio.fixture
async def page(looks: list[float], browser: Client) -> AsyncIterator[Page]:
    one = Page(browser)
    assert await one.open() == (True, None)
    yield one
    await one.socket.disconnect()


def add_node(name: str = "frankfurt-1") -> Node:
    node = records.node(name)
    events.changed()
    return node


def add_run(**fields: Any) -> Run:
    run = records.run(100, type="echo", **fields)
    events.changed()
    return run


# ---- who may connect ----


async def _refused(client: Client, origin: str = "http://localhost:8000") -> int | None:
    connected, code = await Page(client, origin).open()
    assert not connected
    return code


async def test_a_stranger_is_refused(looks: list[float], client: Client) -> None:
    assert await _refused(client) == live.FORBIDDEN
    assert not looks


async def test_somebody_who_is_not_staff_is_refused(looks: list[float], client: Client) -> None:
    user = await sync_to_async(User.objects.create_user)("bert")
    await sync_to_async(client.force_login)(user)
    assert await _refused(client) == live.FORBIDDEN


async def test_an_inactive_member_of_staff_is_refused(looks: list[float], browser: Client, staff: User) -> None:
    await User.objects.filter(pk=staff.pk).aupdate(is_active=False)
    assert await _refused(browser) == live.FORBIDDEN


async def test_another_sites_page_is_refused(looks: list[float], browser: Client) -> None:
    await _refused(browser, "https://evil.example")
    assert not looks


async def test_signing_out_closes_the_page(
    looks: list[float], browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "RECHECK_SECONDS", 0)
    one = Page(browser)
    assert await one.open() == (True, None)
    await one.frame()
    events.changed()
    await one.frame()  # still signed in: the check before it let the page stay
    await sync_to_async(browser.logout)()
    events.changed()
    assert await _closed(one) == live.FORBIDDEN


async def test_losing_the_staff_flag_closes_the_page(
    looks: list[float], browser: Client, staff: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "RECHECK_SECONDS", 0)
    one = Page(browser)
    assert await one.open() == (True, None)
    await one.frame()
    await User.objects.filter(pk=staff.pk).aupdate(is_staff=False)
    events.changed()
    assert await _closed(one) == live.FORBIDDEN


async def _closed(page: Page) -> int:
    while True:
        message = await page.socket.receive_output(timeout=PATIENCE)
        if message["type"] == "websocket.close":
            code: int = message["code"]
            return code
        await page.seen(json.loads(message["text"]))


# ---- what it sends ----


async def test_everything_comes_first(looks: list[float], browser: Client) -> None:
    node, run = await sync_to_async(add_node)(), await sync_to_async(add_run)()
    allocation = await sync_to_async(records.allocation)(run, node, 0, 10)
    one = Page(browser)
    assert await one.open() == (True, None)
    frame = await one.frame()
    await one.socket.disconnect()
    assert frame["full"]
    assert frame["lists"] == {
        "nodes": [f"node-{node.id}"],
        "runs": [f"run-{run.id}"],
        "journal": [],
        "allocations": [f"allocation-{allocation.id}"],
    }
    single = {"steps", "totals", "throughput", "history"}
    assert set(frame["parts"]) == {*single, *(part for ids in frame["lists"].values() for part in ids)}
    for name, html in frame["parts"].items():
        assert f'id="{name}"' in html.split(">")[0]


async def test_then_only_what_changed(page: Page) -> None:
    node, other = await sync_to_async(add_node)(), await sync_to_async(add_node)("helsinki-2")
    await page.frame_with(f"node-{other.id}")
    await Node.objects.filter(pk=node.pk).aupdate(cpu=93)
    events.changed()
    frame = await page.frame_with(f"node-{node.id}")
    assert not frame["full"]
    assert ">93<" in frame["parts"][f"node-{node.id}"]
    assert f"node-{other.id}" not in frame["parts"]
    assert frame["lists"] == {}


async def test_of_a_beat_only_the_cells_that_say_something_else_are_sent(page: Page, browser: Client) -> None:
    node, other = await sync_to_async(add_node)(), await sync_to_async(add_node)("helsinki-2")
    await Node.objects.aupdate(cpu=5, memory=20)
    await page.until(lambda frame: ">20<" in frame["parts"].get(f"node-{other.id}", ""))
    await Node.objects.filter(pk=node.pk).aupdate(cpu=93)
    events.changed()
    frame = await page.until(lambda frame: frame["cells"])
    assert frame["cells"] == {f"node-{node.id}": {"cpu": "93"}}
    assert frame["parts"].keys() <= {"throughput"}
    late = Page(browser)
    assert await late.open() == (True, None)
    html = (await late.frame())["parts"][f"node-{node.id}"]
    assert re.findall(r'data-cell="(\w+)">([^<]+)<', html)[1:] == [("cpu", "93"), ("memory", "20")]
    await late.socket.disconnect()


async def test_a_frame_longer_than_a_message_may_be_comes_in_pieces(looks: list[float], browser: Client) -> None:
    run = await sync_to_async(records.run)(count=4, params={"text": "\u20ac" * 600_000})
    page = Page(browser, path=f"/ws/live/runs/{run.pk}")
    assert await page.open() == (True, None)
    assert (await page.frame())["parts"]["head"].count("\u20ac") == 600_000
    await Run.objects.filter(pk=run.pk).aupdate(name="short")
    events.changed()
    assert "short" in (await page.frame_with("head"))["parts"]["head"]
    await page.socket.disconnect()


async def test_what_is_gone_leaves_its_list(page: Page) -> None:
    node = await sync_to_async(add_node)()
    await page.frame_with(f"node-{node.id}")
    await sync_to_async(node.delete)()
    events.changed()
    frame = await page.until(lambda frame: "nodes" in frame["lists"])
    assert frame["lists"]["nodes"] == []


async def test_a_write_of_another_process_is_seen_without_a_wake_up(page: Page) -> None:
    await page.frame()
    before = events.version()
    node = await Node.objects.acreate(name="elsewhere")
    began = time.monotonic()
    await page.frame_with(f"node-{node.id}")
    assert events.version() == before
    assert time.monotonic() - began < live.REREAD_SECONDS + 2


async def test_a_quiet_page_still_hears_that_it_is_current(page: Page) -> None:
    await page.frame()
    frame = await page.until(lambda frame: not frame["parts"])
    assert not frame["lists"]
    assert abs(frame["at"] / 1000 - time.time()) < 60


async def test_markup_in_names_stays_text(page: Page) -> None:
    run = await sync_to_async(add_run)(name="<script>alert(1)</script>")
    html = (await page.frame_with(f"run-{run.id}"))["parts"][f"run-{run.id}"]
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# ---- what it costs ----


async def test_a_thousand_changes_a_second_make_at_most_four_frames_a_second(page: Page, looks: list[float]) -> None:
    node = await sync_to_async(add_node)()
    await page.frame_with(f"node-{node.id}")
    frames, began = 0, time.monotonic()

    async def change() -> None:
        while True:
            events.changed()
            await asyncio.sleep(0.001)

    changing = asyncio.create_task(change())
    del looks[:]
    while time.monotonic() - began < 2:
        await page.frame()
        frames += 1
    changing.cancel()
    assert 2 <= frames <= 9
    assert all(later - sooner >= live.LOOK_SECONDS * 0.9 for sooner, later in pairwise(looks))


async def test_pages_share_one_reader_which_ends_with_the_last(looks: list[float], browser: Client) -> None:
    first, second = Page(browser), Page(browser)
    for page in (first, second):
        assert await page.open() == (True, None)
        assert (await page.frame())["full"]
    del looks[:]
    began = time.monotonic()
    node = await sync_to_async(add_node)()
    await asyncio.gather(first.frame_with(f"node-{node.id}"), second.frame_with(f"node-{node.id}"))
    assert len(looks) <= (time.monotonic() - began) / live.LOOK_SECONDS + 1
    await first.socket.disconnect()
    assert len(live.shared) == 1
    await second.socket.disconnect()
    assert len(live.shared) == 0


async def test_a_page_that_comes_back_gets_everything_again(looks: list[float], browser: Client) -> None:
    for _ in range(2):
        page = Page(browser)
        assert await page.open() == (True, None)
        assert (await page.frame())["full"]
        await page.socket.disconnect()


async def test_a_page_that_does_not_keep_up_gets_the_newest_state_only(page: Page, looks: list[float]) -> None:
    node = await sync_to_async(add_node)()
    await page.frame_with(f"node-{node.id}")
    unread = await page.frame(seen=False)
    for cpu in (11, 22, 33):
        await Node.objects.filter(pk=node.pk).aupdate(cpu=cpu)
        events.changed()
        # The second look from here has begun after the write.
        enough = len(looks) + 2
        async with asyncio.timeout(PATIENCE):
            while len(looks) < enough:
                events.changed()
                await asyncio.sleep(0.02)
    assert await page.socket.receive_nothing(timeout=0.1)
    await page.seen(unread)
    html, frames = "", 0
    while ">33<" not in html:
        frame = await page.frame()
        html = frame["parts"].get(f"node-{node.id}", "")
        frames += 1
        assert ">11<" not in html
    assert frames <= 2


@pytest.mark.parametrize("nonsense", ["{", "[]", "7", '{"seen": "x"}', '{"seen": 99}', "[" * 5000, '"\\ud800"'])
async def test_nonsense_from_a_page_is_ignored(page: Page, nonsense: str) -> None:
    first = await page.frame(seen=False)
    await page.socket.send_to(text_data=nonsense)
    await page.socket.send_to(bytes_data=b"\x00")
    await page.seen(first)
    events.changed()
    assert (await page.frame())["seq"] == first["seq"] + 1


async def test_a_failing_read_is_got_over(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await page.frame()
    with monkeypatch.context() as patch:
        failed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def fail() -> None:
            loop.call_soon_threadsafe(failed.set)
            raise RuntimeError("locked")

        patch.setattr(overviews, "allocation_views", fail)
        events.changed()
        async with asyncio.timeout(PATIENCE):
            await failed.wait()
    node = await sync_to_async(add_node)()
    await page.frame_with(f"node-{node.id}")
    assert "could not be read" in caplog.text


async def test_the_page_of_a_run_follows_that_run_and_ends_with_it(looks: list[float], browser: Client) -> None:
    run = await sync_to_async(records.run)(count=4, params={"seconds": 2})
    page = Page(browser, path=f"/ws/live/runs/{run.pk}")
    assert await page.open() == (True, None)
    first = await page.frame()
    assert set(first["lists"]) == {"errors", "allocations"}
    assert "0/4" in first["parts"]["head"]
    await Run.objects.filter(pk=run.pk).aupdate(saved=3)
    events.changed()
    assert "3/4" in (await page.frame_with("head"))["parts"]["head"]
    assert not looks  # nobody reads the overview for it
    await Run.objects.filter(pk=run.pk).adelete()
    events.changed()
    assert await _closed(page) == live.GONE
    assert len(live.shared) == 0


async def test_the_journal_of_one_kind_is_live(browser: Client) -> None:
    await JournalEntry.objects.acreate(about="run", word="completed")
    one = Page(browser, path=f"/ws/live/journal/{1 + JournalEntry.About.values.index('node')}")
    assert await one.open() == (True, None)
    assert (await one.frame())["lists"] == {"journal": []}
    entry = await JournalEntry.objects.acreate(about="node", word="offline", name="berlin")
    events.changed()
    frame = await one.frame_with(f"entry-{entry.id}")
    await one.socket.disconnect()
    assert frame["lists"] == {"journal": [f"entry-{entry.id}"]}
    assert "Node offline" in frame["parts"][f"entry-{entry.id}"]
