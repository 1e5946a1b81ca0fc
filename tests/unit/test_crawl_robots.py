"""robots.txt: rules by robot and pattern, what each answer means, and who is asked how often."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodes.crawling import robots
from nodes.crawling.robots import ABSENT, Book, Rules
from nodes.fetching import Answer, Fetcher, FetchFailed

AGENT = "ourbot/1.0 (+https://example.org/bot)"
FILE = """
User-agent: *
Disallow: /private/
Allow: /private/open
Disallow: /*?session=
Disallow: /*.pdf$
Crawl-delay: 2

User-agent: otherbot
Disallow: /

User-agent: OurBot
User-agent: Third
Disallow: /ours
Request-rate: 1/5
"""


class Answers(Fetcher):
    """Gives what it was told, and counts; stands for hosts that would be asked over the network."""

    def __init__(self, *answers: Answer | FetchFailed) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: Counter[str] = Counter()

    def get(
        self, url: str, headers: Any = None, *, accept: frozenset[int] = frozenset(), types: Any = frozenset()
    ) -> Answer:
        self.asked[url] += 1
        assert accept == ABSENT
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, FetchFailed):
            raise answer
        return answer


def ok(text: str | bytes) -> Answer:
    return Answer("https://example.org/robots.txt", 200, {}, text.encode() if isinstance(text, str) else text)


def rules(answer: Answer | FetchFailed) -> Rules:
    return Book().rules("https://example.org/x", Answers(answer))


@pytest.mark.parametrize(
    ("path", "agent", "rule"),
    [
        ("/", "any", ""),
        ("/private/x", "any", "Disallow: /private/ for *"),
        ("/private/open/x", "any", ""),
        ("/x?session=1", "any", "Disallow: /*?session= for *"),
        ("/a/b.pdf", "any", "Disallow: /*.pdf$ for *"),
        ("/a/b.pdf?x=1", "any", ""),
        ("/x", "otherbot", "Disallow: / for otherbot"),
        ("/x", "anotherbot", ""),
        ("/private/x", AGENT, ""),
        ("/ours/x", AGENT, "Disallow: /ours for ourbot"),
        ("/%6furs", AGENT, "Disallow: /ours for ourbot"),
        ("/robots.txt", "otherbot", ""),
    ],
)
def test_rules_by_robot_and_pattern(path: str, agent: str, rule: str) -> None:
    assert rules(ok(FILE)).refusal(f"https://example.org{path}", agent) == rule


def test_pauses() -> None:
    assert rules(ok(FILE)).delay("any") == 2
    assert rules(ok(FILE)).delay(AGENT) == 5
    assert rules(ok("User-agent: *\nCrawl-delay: soon")).delay("any") == 0
    assert Rules().delay("any") == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_is_absent_forbids_nothing(status: int) -> None:
    """RFC 9309, 2.3.1.3."""
    found = rules(Answer("https://example.org/robots.txt", status, {}, b"User-agent: *\nDisallow: /"))
    assert (found.refusal("https://example.org/x", AGENT), found.why_not) == ("", "")


@pytest.mark.parametrize(
    ("failure", "retry"),
    [
        (FetchFailed("x", retry=True, status=503, reason="answered 503"), True),
        (FetchFailed("x", retry=True, status=429, reason="answered 429"), True),
        (FetchFailed("x", retry=True, reason="no answer within 20 s"), True),
        (FetchFailed("x", reason="too many redirects, more than 5"), False),
        (FetchFailed("x", reason="127.0.0.1 is not public"), False),
    ],
)
def test_what_cannot_be_read_forbids_everything_for_now(failure: FetchFailed, retry: bool) -> None:
    """RFC 9309, 2.3.1.4."""
    found = rules(failure)
    assert found.why_not == f"its robots.txt cannot be read: {failure.reason}"
    assert found.retry is retry


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\x02\xff" * 1000,
        b"<html>not found</html>",
        b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /private/",
        b"Disallow: /no-robot-named",
        b"User-agent: *\n" + b"Disallow: /x\n" * 20_000,
    ],
)
def test_odd_files_are_read_as_far_as_they_can_be(content: bytes) -> None:
    found = rules(ok(content))
    assert found.refusal("https://example.org/a", AGENT) == ""
    assert bool(found.refusal("https://example.org/private/a", AGENT)) == (b"private" in content)


def test_a_file_that_is_too_long_is_cut_between_lines() -> None:
    rule = b"Disallow: /"
    start = b"User-agent: *\n" + rule + b"private\n#"
    long = start.ljust(robots.READ_BYTES - len(rule) - 1, b"x") + b"\n" + rule + b"b/c\n"
    assert long[: robots.READ_BYTES].endswith(b"\n" + rule)
    found = rules(ok(long))
    assert found.refusal("https://example.org/a", AGENT) == "", "half a rule would forbid everything"
    assert found.refusal("https://example.org/private", AGENT)


def test_a_host_is_asked_once_in_a_while() -> None:
    now = [1000.0]
    book, asked = Book(clock=lambda: now[0]), Answers(ok(FILE))
    for path in ("/a", "/b?c=d"):
        book.rules(f"https://example.org{path}", asked)
    assert asked.asked == {"https://example.org/robots.txt": 1}
    book.rules("https://example.org:8443/a", asked)
    book.rules("http://example.org/a", asked)
    assert len(asked.asked) == 3
    now[0] += robots.KEPT_SECONDS + 1
    book.rules("https://example.org/a", asked)
    assert asked.asked["https://example.org/robots.txt"] == 2


def test_a_host_that_could_not_say_it_is_asked_again_soon() -> None:
    now = [1000.0]
    book, asked = Book(clock=lambda: now[0]), Answers(FetchFailed("x", retry=True), ok(FILE))
    assert book.rules("https://example.org/a", asked).why_not
    assert book.rules("https://example.org/b", asked).why_not
    assert asked.asked.total() == 1
    now[0] += robots.AGAIN_SECONDS + 1
    assert not book.rules("https://example.org/a", asked).why_not


def test_threads_that_want_the_same_rules_ask_once() -> None:
    gate, book = threading.Barrier(8), Book()
    release = threading.Event()
    asked = Answers(ok(FILE))
    found: list[Rules] = []

    def ask() -> None:
        gate.wait()
        found.append(book.rules("https://example.org/a", asked, before=release.wait))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert asked.asked.total() == 1
    assert len(set(found)) == 1
    assert len(found) == 8


def test_processes_of_a_node_share_what_they_know(tmp_path: Path) -> None:
    now = [1000.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    first, second = Answers(ok(FILE)), Answers(ok(""))
    Book(tmp_path, clock=clock).rules("https://example.org/a", first)
    found = Book(tmp_path, clock=clock).rules("https://example.org/a", second)
    assert found.refusal("https://example.org/private/x", "any")
    assert second.asked.total() == 0
    now[0] += robots.KEPT_SECONDS + 1
    Book(tmp_path, clock=clock).rules("https://example.org/a", second)
    assert second.asked.total() == 1


def test_a_file_of_the_cache_that_is_broken_is_not_believed(tmp_path: Path) -> None:
    Book(tmp_path).rules("https://example.org/a", Answers(ok(FILE)))
    (kept,) = (tmp_path / "robots").iterdir()
    for content in ("", "{", "[]", '{"origin": "https://example.org", "until": 9e99, "text": ""}'):
        kept.write_text(content)
        assert (
            Book(tmp_path)
            .rules("https://example.org/a", Answers(ok(FILE)))
            .refusal("https://example.org/private/x", "any")
        )


def test_a_cache_that_cannot_be_written_costs_a_request_only(tmp_path: Path) -> None:
    (tmp_path / "robots").write_text("a file, where a folder should be")
    assert Book(tmp_path).rules("https://example.org/a", Answers(ok(FILE))).text == FILE


def test_old_answers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robots, "MOST_KEPT", 3)
    book, asked = Book(), Answers(ok(FILE))
    for number in range(5):
        book.rules(f"https://h{number}.org/", asked)
    book.rules("https://h4.org/", asked)
    assert asked.asked.total() == 5
    book.rules("https://h0.org/", asked)
    assert asked.asked.total() == 6
    monkeypatch.setattr(robots, "MOST_CHARACTERS", 2 * len(FILE))
    for host in ("h5", "h0", "h4"):
        book.rules(f"https://{host}.org/", asked)
    assert asked.asked.total() == 8, "two answers are as much as may be kept"
