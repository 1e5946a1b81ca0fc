"""Fetching over HTTP: no way into networks that are not public, a limit on all that an answer costs, and how each
failure reads. The servers are real, on loopback, and say what they are told to byte by byte."""

from __future__ import annotations

import datetime as dt
import gzip
import ipaddress
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nodes import addresses, surroundings, wire
from nodes.addresses import Place, parsed, public
from nodes.fetching import Answer, Fetcher, FetchFailed, Limits, NoConnection, Refused, TooLarge
from nodes.surroundings import Surroundings
from tests.hostile.addresses import SPELLINGS

SOON = 10.0
PATIENT = Limits(seconds=SOON)
ROOT = Path(__file__).parents[2]
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Asked(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""


Script = bytes | Callable[[socket.socket], None]


class Peer:
    """A server. ``script``: by target, bytes to send, after which the connection stays open, or what is done with the
    connection before it is closed; "" stands for every other target."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.script: dict[str, Script] = {}
        self.asked: list[Asked] = []
        self.connections = 0
        self.left = threading.Event()
        """A script ended because the other side went away."""
        self._tls = tls
        self._socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.place: Place = (self._socket.family, self._socket.getsockname())
        self.port: int = self.place[1][1]
        self.host = f"[{host}]" if ":" in host else host
        self.url = f"http://{self.host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                while self._one(connection):
                    pass
        except OSError:
            self.left.set()
        finally:
            connection.close()

    def _one(self, connection: socket.socket) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (piece := connection.recv(1)):
                return False
            head += piece
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
        wanted = int(headers.get("content-length", 0))
        while wanted > 0:
            wanted -= len(connection.recv(min(wanted, 65536)))
        method, target, _ = first.split(" ")
        self.asked.append(Asked(method, target, headers))
        script = self.script.get(target, self.script.get("", said(404, b"none")))
        if isinstance(script, bytes):
            connection.sendall(script)
            return True
        script(connection)
        return False


def said(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An answer; header names with _ for -."""
    headers = {"Content-Length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
    lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items() if text)
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode("latin-1") + body


def chunked(*lines: bytes, **headers: str) -> bytes:
    return said(200, b"", Transfer_Encoding="chunked", Content_Length="", **headers) + b"\r\n".join(lines)


@contextmanager
def serving(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Peer]:
    made = Peer(host, tls)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as made:
        yield made


@pytest.fixture
def canary() -> Iterator[Peer]:
    """To whom nobody may ever connect."""
    with serving() as made:
        made.script[""] = said(200, b"the secret")
        yield made
        assert made.connections == 0


@pytest.fixture(autouse=True)
def loopback() -> Iterator[None]:
    before = surroundings.current()
    allow(*LOOPBACK)
    yield
    surroundings.settle(before)


def allow(*networks: str) -> None:
    surroundings.settle(Surroundings(allowed_networks=networks))


def fetch(url: str, limits: Limits = PATIENT, **options: Any) -> Answer:
    with Fetcher(limits) as fetcher:
        return fetcher.get(url, **options)


def failing(url: str, limits: Limits = PATIENT, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as failure:
        fetch(url, limits, **options)
    return failure.value


# No way into networks that are not public


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_whatever_is_not_public_is_refused_however_it_is_spelt(canary: Peer, spelling: str) -> None:
    allow()
    failure = failing(spelling.format(port=canary.port))
    assert isinstance(failure, Refused)
    assert not failure.retry
    assert "cannot be fetched: " in str(failure)
    assert str(failure).isprintable()


def test_a_redirect_passes_the_same_door(canary: Peer) -> None:
    with serving("127.0.0.2") as front, Fetcher() as fetcher:
        allow("127.0.0.2/32")
        targets = [each.format(port=canary.port) for each in SPELLINGS if each.isascii() and each.isprintable()]
        # Without a host of their own these lead back to the front.
        targets = [each for each in targets if "//" in each and "///" not in each and not each.endswith("//")]
        for number, target in enumerate(targets):
            front.script[f"/{number}"] = said(302, Location=target)
            with pytest.raises(Refused) as failure:
                fetcher.get(f"{front.url}/{number}")
            assert f"to which {front.url}/{number} redirects" in str(failure.value)
        assert len(front.asked) == len(targets) > 40


class Names:
    """A resolver that gives one answer after the other."""

    def __init__(self, *answers: Sequence[Place]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Sequence[Place]:
        self.asked.append((host, port))
        return self.answers.pop(0)


@pytest.mark.parametrize("other", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1%lo", "10.0.0.1"])
def test_a_name_with_a_public_and_a_private_address_is_refused(canary: Peer, other: str) -> None:
    allow()
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    places = [(socket.AF_INET, ("192.31.7.1", canary.port)), (family, (other, canary.port))]
    for found in (places, places[::-1]):
        names = Names(found)
        with pytest.raises(Refused, match=r"rebound\.example leads to .*, which is not a public address"):
            Fetcher(resolver=names).get(f"http://rebound.example:{canary.port}/")
        assert len(names.asked) == 1


def test_a_name_is_resolved_once_and_a_second_answer_never_heard(canary: Peer) -> None:
    allow("127.0.0.2/32")
    with serving("127.0.0.2") as front:
        front.script["/"] = said(200, b"a")
        names = Names([front.place], [canary.place], [canary.place])
        assert Fetcher(resolver=names).get(f"http://rebound.example:{canary.port}/").content == b"a"
        assert names.asked == [("rebound.example", canary.port)]
        assert front.asked[0].headers["host"] == f"rebound.example:{canary.port}"


def test_an_open_connection_is_no_way_around_the_check_nor_to_where_a_name_led_before(canary: Peer) -> None:
    allow("127.0.0.2/32")
    with serving("127.0.0.2") as first, serving("127.0.0.2") as second:
        first.script["/"] = second.script["/"] = said(200, b"a")
        with Fetcher(resolver=Names([first.place], [canary.place], [second.place])) as fetcher:
            fetcher.get("http://rebound.example/")
            with pytest.raises(Refused):
                fetcher.get("http://rebound.example/")
            fetcher.get("http://rebound.example/")
        assert (first.connections, second.connections) == (1, 1)


def test_the_setting_opens_what_it_names_and_nothing_else(peer: Peer) -> None:
    peer.script["/"] = said(200, b"a")
    allow("127.0.0.1")
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        with suppress(NoConnection), Fetcher() as fetcher:  # a machine without IPv6
            assert fetcher.get(f"http://{host}:{peer.port}/").content == b"a"
    assert isinstance(failing(f"http://127.0.0.2:{peer.port}/"), Refused)
    allow("everything")
    assert "the setting allowed_networks is wrong: 'everything' is not a network" in str(failing(f"{peer.url}/"))


def test_proxies_of_the_environment_are_not_used(peer: Peer, canary: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, canary.url)
    peer.script["/"] = said(200, b"a")
    assert fetch(f"{peer.url}/").content == b"a"


@pytest.mark.parametrize(
    "network",
    [
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4", "::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2"),
        *("8000::/1", "fc00::/7", "fe80::/10", "ff00::/8", "64:ff9b:1::/48", "100::/64"),
    ],
)
def test_networks_that_are_not_public_are_so_from_end_to_end(network: str) -> None:
    found = ipaddress.ip_network(network)
    assert not public(found[0])
    assert not public(found[-1])


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"),
        *("172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "223.255.255.255"),
        *("2001:200::", "2001:4860:4860::8888", "2003::", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"),
    ],
)
def test_what_everybody_can_reach_is_public(address: str) -> None:
    assert public(ipaddress.ip_address(address))


# Addresses


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("HTTP://Example.ORG", "http://example.org/"),
        (" https://example.org:443/a?b#c ", "https://example.org/a?b"),
        ("http://example.org.:80/", "http://example.org/"),
        ("http://example.org:8080", "http://example.org:8080/"),
        ("https://example.org:80/", "https://example.org:80/"),
        ("http://bücher.example/ä b?ö=ü", "http://xn--bcher-kva.example/%C3%A4%20b?%C3%B6=%C3%BC"),
        ("http://BÜCHER。example/", "http://xn--bcher-kva.example/"),
        ("http://a_b.example/%7e%zz%", "http://a_b.example/%7e%25zz%25"),
        ('http://a/"<x>?y"<z>', "http://a/%22%3Cx%3E?y%22%3Cz%3E"),
        ("http://[2606:4700:0:0:0:0:0:1111]:8080/", "http://[2606:4700::1111]:8080/"),
        ("http://a/@b:c;d=e,f(g)*[h]!?i=j&k=[l]?/", "http://a/@b:c;d=e,f(g)*[h]!?i=j&k=[l]?/"),
        ("http://a?b", "http://a/?b"),
    ],
)
def test_an_address_is_normalised(given: str, normal: str) -> None:
    assert parsed(given).url == normal == parsed(normal).url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://a/" + "x" * 5000, "has 5009 characters; 4096 are allowed"),
        ("http://a/\r\nb", "control character"),
        ("http://a\t/", "control character"),
        ("http://2130706433/", "not an IPv4 address in its plain form"),
        ("http://0x7f.1/", "not an IPv4 address in its plain form"),
        ("http://127.0.0.01/", "not an IPv4 address in its plain form"),
        ("http://a:0/", "no port 0"),
        ("http://a:65536/", "no address"),
        ("http://a:b/", "no address"),
        ("http://[::1%25lo]/", "not an IPv6 address"),
        ("http://[::1/", "no address"),
        ("http://a..b/", "not a name"),
        ("http://a,b/", "not a name"),
        ("http://" + "a" * 64 + "/", "not a name"),
        ("http://" + "a." * 130 + "a/", "not a name"),
        ("http://\ud800/", "no address"),
        ("http://\u2100example/", "no address"),
        ("http://xn--\u00e4/", "domain name system"),
        ("javascript:alert(1)", "javascript is not http or https"),
        ("example.org", "no scheme is not http or https"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(url: str, said: str) -> None:
    failure = failing(url)
    assert isinstance(failure, Refused)
    assert said in str(failure)
    assert len(str(failure)) < 400


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://me:secret@example.org/a?key=secret#secret", "https://example.org/a"),
        ("http://me:sec/ret@example.org/", "http://…/ret@example.org/"),
        ("http://me:secret", "http://…"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://a/\n\u202e", "http://a/\ufffd\ufffd"),
        ("http://a/" + "x" * 500, "http://a/" + "x" * 150 + "…"),
        ("", ""),
    ],
)
def test_messages_name_an_address_without_its_secrets(url: str, named: str) -> None:
    assert addresses.named(url) == named


# What is asked, and what comes


def test_an_answer_comes_with_headers_content_and_where_it_is_from(peer: Peer) -> None:
    peer.script["/a?b=c"] = said(200, b"content", ETag='"x"', Set_Cookie="a=b\r\nSet-Cookie: c=d")
    answer = fetch(f"{peer.url}/a?b=c#d", headers={"If-None-Match": '"w"', "Host": "other", "Accept-Encoding": "br"})
    assert (answer.url, answer.status, answer.content, answer.moved) == (f"{peer.url}/a?b=c", 200, b"content", "")
    assert (answer.headers["etag"], answer.headers["set-cookie"]) == ('"x"', "a=b, c=d")
    (asked,) = peer.asked
    assert asked.headers == {
        "host": f"127.0.0.1:{peer.port}",
        "user-agent": "cascade",
        "accept": "*/*",
        "if-none-match": '"w"',
        "accept-encoding": "gzip, deflate",
    }


@pytest.mark.parametrize("headers", [{"A": "b\r\nC: d"}, {"A": "ä"}, {"A b": "c"}, {"A:": "c"}, {"": "c"}, {"A": "\0"}])
def test_headers_that_would_be_more_than_one_are_not_sent(peer: Peer, headers: dict[str, str]) -> None:
    assert "has characters that no header may have" in str(failing(f"{peer.url}/", headers=headers))
    assert peer.connections == 0


def deflated(body: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(b"content")),
        ("X-GZIP", gzip.compress(b"content") + b"\0padding"),
        ("gzip, identity", gzip.compress(b"con") + gzip.compress(b"") + gzip.compress(b"tent")),
        ("deflate", deflated(b"content", 15)),
        ("deflate", deflated(b"content", -15)),
        ("identity", b"content"),
    ],
)
def test_what_is_packed_is_unpacked(peer: Peer, coding: str, packed: bytes) -> None:
    peer.script["/"] = said(200, packed, Content_Encoding=coding)
    peer.script["/empty"] = said(200, b"", Content_Encoding=coding)
    assert fetch(f"{peer.url}/").content == b"content"
    assert fetch(f"{peer.url}/empty").content == b""


def test_chunks_and_bodies_until_the_end_of_the_connection_come_whole(peer: Peer) -> None:
    peer.script["/chunks"] = chunked(b"3;a=b", b"con", b"4", b"tent", b"0", b"Trailer: x", b"", b"")
    peer.script["/end"] = lambda connection: connection.sendall(b"HTTP/1.0 200 OK\n\ncontent")
    assert fetch(f"{peer.url}/chunks").content == fetch(f"{peer.url}/end").content == b"content"


@pytest.mark.parametrize(
    ("status", "retry"),
    [(204, False), (304, False), (400, False), (403, False), (404, False), (410, False), (501, True)]
    + [(status, True) for status in (408, 425, 429, 500, 502, 503, 504)],
)
def test_any_other_status_is_a_failure_that_says_whether_to_come_again(peer: Peer, status: int, retry: bool) -> None:
    peer.script["/a?key=secret"] = said(status, Retry_After="120")
    failure = failing(f"{peer.url}/a?key=secret")
    assert (failure.status, failure.retry) == (status, retry)
    assert str(failure) == f"{peer.url}/a answered {status} Said" + (" (again after: 120)" if retry else "")
    assert failure.reason == str(failure).partition(" ")[2]


def test_a_status_that_is_accepted_is_an_answer(peer: Peer) -> None:
    peer.script["/same"] = said(304, ETag='"x"', Content_Length="500")
    peer.script["/moved"] = said(301, b"see there", Location="/there")
    same = fetch(f"{peer.url}/same", accept=frozenset({304}))
    assert (same.status, same.content, same.headers["etag"]) == (304, b"", '"x"')
    moved = fetch(f"{peer.url}/moved", accept=frozenset({301}))
    assert (moved.status, moved.headers["location"], moved.moved) == (301, "/there", "")
    assert len(peer.asked) == 2


def test_a_type_that_is_not_wanted_is_not_read(peer: Peer) -> None:
    peer.script["/film"] = endless(said(200, Content_Type="video/mp4", Content_Length=""))
    peer.script["/page"] = said(200, b"page", Content_Type="Text/HTML ; charset=x")
    peer.script["/bare"] = said(200, b"page")
    wanted = frozenset({"text/html"})
    assert "it is video/mp4, not text/html" in str(failing(f"{peer.url}/film", types=wanted))
    assert fetch(f"{peer.url}/page", types=wanted).content == fetch(f"{peer.url}/bare", types=wanted).content == b"page"


def test_a_post_is_sent_once_and_answered_with_any_status(peer: Peer) -> None:
    peer.script["/"] = said(302, Location="/elsewhere", Retry_After="5")
    peer.script["/endless"] = endless(said(200, Content_Length=""))
    with Fetcher(Limits(seconds=SOON)) as fetcher:
        answer = fetcher.post(f"{peer.url}/", b"body", {"Content-Type": "text/plain"})
        assert (answer.status, answer.headers["retry-after"]) == (302, "5")
        assert fetcher.post(f"{peer.url}/endless", b"").status == 200
    assert [each.target for each in peer.asked] == ["/", "/endless"]
    assert peer.asked[0].headers["content-length"] == "4"
    allow()
    with pytest.raises(Refused):
        Fetcher().post(f"{peer.url}/", b"body")
    assert len(peer.asked) == 2


# Redirects


def test_redirects_are_followed_and_permanent_ones_told(peer: Peer) -> None:
    peer.script |= {
        "/a": said(301, b"moved", Location="b"),
        "/b": said(308, Location=f"{peer.url}/c?d=e#f"),
        "/c?d=e": said(200, b"content"),
        "/t": said(302, Location="/a"),
        "/u": said(301, Location="/" + "ä ".encode().decode("latin-1") + "b"),
        "/%C3%A4%20b": said(200, b"encoded"),
    }
    answer = fetch(f"{peer.url}/a")
    assert (answer.content, answer.url, answer.moved) == (b"content", f"{peer.url}/c?d=e", f"{peer.url}/c?d=e")
    answer = fetch(f"{peer.url}/t")
    assert (answer.content, answer.url, answer.moved) == (b"content", f"{peer.url}/c?d=e", "")
    assert fetch(f"{peer.url}/u").content == b"encoded"


def test_redirects_in_a_circle_and_too_many_of_them_end(peer: Peer) -> None:
    peer.script |= {
        "/a": said(302, Location="/b"),
        "/b": said(302, Location="/a"),
        "/nowhere": said(302),
        "/bad": said(302, Location="http://[x"),
    }
    peer.script |= {f"/{number}": said(302, Location=f"/{number + 1}") for number in range(9)}
    assert f"redirects in a circle: {peer.url}/a -> {peer.url}/b -> {peer.url}/a" in str(failing(f"{peer.url}/a"))
    assert len(peer.asked) == 2
    failure = failing(f"{peer.url}/0", Limits(redirects=3))
    assert "too many redirects, more than 3" in str(failure)
    assert not failure.retry
    assert len(peer.asked) == 2 + 4
    assert "without saying where to" in str(failing(f"{peer.url}/nowhere"))
    assert "no address" in str(failing(f"{peer.url}/bad"))


def test_secrets_stay_with_the_host_they_are_for(peer: Peer) -> None:
    with serving() as other:
        peer.script |= {"/a": said(302, Location="/b"), "/b": said(307, Location=f"{other.url}/c")}
        other.script |= {"/c": said(302, Location=f"{peer.url}/d")}
        peer.script["/d"] = said(200, b"content")
        sent = {"Authorization": "secret", "Cookie": "secret", "X-Key": "secret", "If-None-Match": "x", "Accept": "a/b"}
        assert fetch(f"{peer.url}/a", headers=sent).content == b"content"
    for asked in peer.asked[:2]:
        assert {asked.headers[name] for name in ("authorization", "cookie", "x-key")} == {"secret"}
    for asked in (*other.asked, peer.asked[2]):
        assert "secret" not in asked.headers.values()
        assert (asked.headers["if-none-match"], asked.headers["accept"]) == ("x", "a/b")


@pytest.mark.parametrize(
    ("other", "confided"),
    [
        ("http://a/b", True),
        ("https://a/", True),
        ("https://a:8443/", False),
        ("http://a:81/", False),
        ("http://b/", False),
        ("https://b/", False),
    ],
)
def test_the_same_host_is_confided_in_by_https_too_but_never_by_less(other: str, confided: bool) -> None:
    assert parsed("http://a/").confides(parsed(other)) is confided
    assert not parsed("https://a/").confides(parsed("http://a/"))


# What an answer may cost


def dripping(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """A byte now and then, for ever."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return drip


def endless(head: bytes, piece: bytes = b"x" * 65536) -> Callable[[socket.socket], None]:
    def pour(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return pour


@pytest.mark.parametrize(
    ("head", "drop", "said"),
    [
        (b"HTTP/1.1 200 ", b"O", "no answer within 0.2 s"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"b", "no answer within 0.2 s"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", "no answer within 0.2 s"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "no answer within 0.2 s"),
        (said(200, Content_Length="500"), b"x", "the answer had not ended within 0.2 s"),
        (said(200, Content_Length=""), b"x", "the answer had not ended within 0.2 s"),
        (chunked(), b"1\r\nx\r\n", "the answer had not ended within 0.2 s"),
        (chunked(b"5;"), b"x", "the answer had not ended within 0.2 s"),
        (chunked(b"0", b""), b"A: b\r\n", "the answer had not ended within 0.2 s"),
    ],
)
def test_a_slow_drip_ends_at_the_limit(peer: Peer, head: bytes, drop: bytes, said: str) -> None:
    peer.script["/"] = dripping(head, drop)
    began = time.monotonic()
    failure = failing(f"{peer.url}/", Limits(seconds=0.2))
    assert 0.15 < time.monotonic() - began < 2
    assert str(failure) == f"{peer.url}/ cannot be fetched: {said}"
    assert failure.retry
    assert peer.left.wait(SOON)


def test_redirects_do_not_begin_the_time_anew(peer: Peer) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.1)
        connection.sendall(said(302, Location=f"/{len(peer.asked)}"))

    peer.script[""] = slow
    assert "no answer within 0.25 s" in str(failing(f"{peer.url}/", Limits(seconds=0.25, redirects=50)))
    assert len(peer.asked) <= 3


def test_silence_ends_before_the_time_does(peer: Peer) -> None:
    over = threading.Event()

    def half(connection: socket.socket) -> None:
        connection.sendall(said(200, b"half", Content_Length="8"))
        over.wait(SOON)

    peer.script["/"] = half
    failure = failing(f"{peer.url}/", Limits(seconds=60, silence=0.1))
    over.set()
    assert "nothing came for 0.1 s" in str(failure)
    assert failure.retry


def test_a_resolver_that_does_not_answer_is_not_waited_for() -> None:
    over = threading.Event()

    def resolver(host: str, port: int) -> Sequence[Place]:
        over.wait(SOON)
        return []

    began = time.monotonic()
    with pytest.raises(NoConnection, match=r"asking where its name leads took 0\.1 s") as failure:
        Fetcher(Limits(connect_seconds=0.1), resolver=resolver).get("http://a.example/")
    assert time.monotonic() - began < 2
    over.set()
    assert failure.value.retry


@pytest.mark.parametrize("length", ["104857600", ""])
@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_a_hundred_megabytes_are_cut_off_at_the_limit_without_being_read(peer: Peer, length: str, form: str) -> None:
    sent = 0

    def pour(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(chunked() if form == "chunked" else said(200, Content_Length=length))
        for _ in range(1600):
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n" if form == "chunked" else bytes(65536))
            sent += 65536

    peer.script["/"] = pour
    failure = failing(f"{peer.url}/", Limits(max_bytes=1_000_000))
    assert isinstance(failure, TooLarge)
    assert "more than 1000000 bytes, or unpacks to more" in str(failure)
    assert not failure.retry
    assert peer.left.wait(SOON)
    assert sent < 20_000_000  # what the buffers on the way hold


def test_what_is_just_at_the_limit_is_not_too_much(peer: Peer) -> None:
    body = bytes(100_000)
    peer.script |= {"/plain": said(200, body), "/gzip": said(200, gzip.compress(body), Content_Encoding="gzip")}
    for target in peer.script:
        assert fetch(f"{peer.url}{target}", Limits(max_bytes=100_000)).content == body
        assert isinstance(failing(f"{peer.url}{target}", Limits(max_bytes=99_999)), TooLarge)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_unpacked_no_further_than_the_limit(peer: Peer, coding: str) -> None:
    peer.script["/"] = said(200, deflated(bytes(40_000_000), 31 if coding == "gzip" else 15), Content_Encoding=coding)
    tracemalloc.start()
    try:
        failure = failing(f"{peer.url}/", Limits(max_bytes=1_000_000))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(failure, TooLarge)
    assert most < 6_000_000


def test_what_unpacks_to_nothing_counts_as_it_comes(peer: Peer) -> None:
    packed = gzip.compress(b"") * 75_000
    peer.script["/"] = chunked(f"{len(packed):x}".encode(), packed, b"0", b"", b"", Content_Encoding="gzip")
    assert isinstance(failing(f"{peer.url}/", Limits(max_bytes=1_000_000)), TooLarge)
    peer.script["/"] = said(200, gzip.compress(b"") * 400_000, Content_Encoding="gzip")
    began = time.monotonic()
    assert "had not ended within 0.2 s" in str(failing(f"{peer.url}/", Limits(seconds=0.2)))
    assert time.monotonic() - began < 2


def test_a_length_above_the_limit_is_believed_at_once(peer: Peer) -> None:
    peer.script["/"] = said(200, b"", Content_Length="100001")
    assert isinstance(failing(f"{peer.url}/", Limits(max_bytes=100_000, seconds=SOON)), TooLarge)


@pytest.mark.parametrize(
    ("head", "piece", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", "its answer is not HTTP: got more than 100 headers"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"b" * 65536, "its answer is not HTTP: got more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n", b"A: " + b"b" * 60000 + b"\r\n", "its headers are too long"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "its headers are too long"),
        (chunked(), b"1;" + b"x" * 60000 + b"\r\nx\r\n", "has more than 1000000 bytes"),
    ],
)
def test_headers_and_what_surrounds_a_body_are_limited_too(peer: Peer, head: bytes, piece: bytes, said: str) -> None:
    peer.script["/"] = endless(head, piece)
    failure = failing(f"{peer.url}/", Limits(max_bytes=1_000_000, seconds=SOON))
    assert said in str(failure)
    assert not failure.retry


# What can go wrong on the way


def resetting(head: bytes) -> Callable[[socket.socket], None]:
    def reset(connection: socket.socket) -> None:
        connection.sendall(head)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return reset


@pytest.mark.parametrize(
    ("answer", "said", "retry"),
    [
        (resetting(b""), "Connection reset by peer", True),
        (lambda connection: None, "the connection was closed without an answer", True),
        (said(200, b"half", Content_Length="8"), "the answer broke off", True),
        (chunked(b"8", b"half"), "the answer broke off", True),
        (chunked(b"4", b"half", b""), "the answer broke off", True),
        (said(200, gzip.compress(b"content")[:-9], Content_Encoding="gzip"), "the answer broke off", True),
        (chunked(b"zz", b"garbage"), "the answer broke off", True),
        (chunked(b"-5", b"garbage"), "its answer is not HTTP", False),
        (said(200, b"garbage", Content_Encoding="gzip"), "cannot be unpacked", False),
        (said(200, b"garbage" * 9, Content_Encoding="deflate"), "cannot be unpacked", False),
        (said(200, b"x", Content_Encoding="br"), "content encoding 'br' was not asked for", False),
        (said(200, b"x", Content_Encoding="gzip, gzip"), "content encoding 'gzip, gzip' was not asked for", False),
        (said(200, b"x", Transfer_Encoding="gzip, chunked"), "transfer encoding 'gzip, chunked' is not known", False),
        (b"SSH-2.0-OpenSSH\r\n", "its answer is not HTTP: SSH-2.0-OpenSSH", False),
        (b"HTTP/9.9 200 OK\r\n\r\n", "its answer is not HTTP: HTTP/9.9", False),
        (b"\0\xff\x1b[31m\r\n", "its answer is not HTTP", False),
        (b"HTTP/1.1 99999 OK\r\n\r\n", "its answer is not HTTP", False),
    ],
)
def test_each_fault_on_the_way_has_its_words(peer: Peer, answer: Script, said: str, retry: bool) -> None:
    peer.script["/"] = answer if callable(answer) else lambda connection: connection.sendall(answer)
    failure = failing(f"{peer.url}/")
    assert said in str(failure)
    assert str(failure).startswith(f"{peer.url}/ cannot be fetched: ")
    assert str(failure).isprintable()
    assert failure.retry is retry
    assert failure.status is None


def test_nobody_there_and_no_such_name_are_no_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failure = failing(f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert isinstance(failure, NoConnection)
    assert (failure.reason, failure.retry) == ("Connection refused", True)

    def unknown(code: int) -> NoConnection:
        def resolver(host: str, port: int) -> Sequence[Place]:
            raise socket.gaierror(code, "as the system says")

        with pytest.raises(NoConnection, match="its name leads nowhere: as the system says") as failure:
            Fetcher(resolver=resolver).get("http://a.example/")
        return failure.value

    assert not unknown(socket.EAI_NONAME).retry
    assert unknown(socket.EAI_AGAIN).retry


def test_the_next_address_of_a_name_is_tried(peer: Peer) -> None:
    peer.script["/"] = said(200, b"a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        unknown: Any = 99  # a family that this machine has not got
        places = [(unknown, ("127.0.0.1", 1)), (socket.AF_INET, taken.getsockname()), peer.place]
        assert Fetcher(resolver=lambda host, port: places).get("http://a.example/").content == b"a"


def test_ipv6_is_spoken_where_the_machine_has_it() -> None:
    try:
        made = Peer("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    made.script["/"] = said(200, b"six")
    assert fetch(f"{made.url}/").content == b"six"
    assert made.asked[0].headers["host"] == f"[::1]:{made.port}"
    made.close()


# Connections that are kept


def test_one_connection_serves_many_calls(peer: Peer) -> None:
    peer.script |= {"/a": said(200, b"a"), "/b": chunked(b"1", b"b", b"0", b"", b""), "/c": said(404), "/d": said(200)}
    with Fetcher() as fetcher:
        assert [fetcher.get(f"{peer.url}/{each}").content for each in "abad"] == [b"a", b"b", b"a", b""]
        with pytest.raises(FetchFailed):
            fetcher.get(f"{peer.url}/c")
        fetcher.get(f"{peer.url}/a")
    assert peer.connections == 1
    assert len(peer.asked) == 6


def test_a_connection_that_is_not_clean_is_not_used_again(peer: Peer) -> None:
    sent = threading.Event()

    def late(connection: socket.socket) -> None:
        connection.sendall(said(200, b"a"))
        sent.wait(SOON)
        connection.sendall(said(200, b"of nobody's asking"))
        connection.recv(1)

    peer.script |= {
        "/late": late,
        "/large": said(200, bytes(200_000)),
        "/close": said(200, b"a", Connection="close"),
        "/a": said(200, b"a"),
    }
    with Fetcher(Limits(max_bytes=100_000)) as fetcher:
        fetcher.get(f"{peer.url}/late")
        sent.set()
        (connection, _), *_ = fetcher._idle.values()
        deadline = time.monotonic() + SOON
        while connection.idle():
            assert time.monotonic() < deadline
        assert fetcher.get(f"{peer.url}/a").content == b"a"
        with pytest.raises(TooLarge):
            fetcher.get(f"{peer.url}/large")
        fetcher.get(f"{peer.url}/close")
        fetcher.get(f"{peer.url}/a")
    assert peer.connections == 4


def test_a_connection_that_the_server_has_given_up_is_made_anew_but_nothing_is_posted_twice(peer: Peer) -> None:
    peer.script |= {"/a": said(200, b"a"), "/gone": lambda connection: None}

    def once_gone(connection: socket.socket) -> None:
        peer.script["/once"] = said(200, b"second")

    peer.script["/once"] = once_gone
    with Fetcher() as fetcher:
        fetcher.get(f"{peer.url}/a")
        assert fetcher.get(f"{peer.url}/once").content == b"second"
        fetcher.get(f"{peer.url}/a")
        with pytest.raises(FetchFailed, match="closed without an answer"):
            fetcher.post(f"{peer.url}/gone", b"x")
    assert [each.target for each in peer.asked] == ["/a", "/once", "/once", "/a", "/gone"]


def test_few_connections_are_kept(peer: Peer) -> None:
    peer.script["/"] = said(200, b"a")
    with Fetcher(resolver=lambda host, port: [peer.place]) as fetcher:
        for number in range(20):
            fetcher.get(f"http://host{number}.example/")
        assert len(fetcher._idle) == 8
        fetcher.get("http://host19.example/")
        assert peer.connections == 20


# TLS


class Authority(NamedTuple):
    certificate: Path
    server: ssl.SSLContext
    names: list[str]
    """That were asked for."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate for shop.example, which is its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop.example")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    names: list[str] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    server.sni_callback = lambda _, asked, __: names.append(asked)
    return Authority(folder / "certificate.pem", server, names)


@pytest.fixture
def shop(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.certificate))
    wire._tls.cache_clear()
    with serving(tls=authority.server) as made:
        yield made
    monkeypatch.undo()
    wire._tls.cache_clear()


def tls_fetcher(shop: Peer, limits: Limits = PATIENT) -> Fetcher:
    return Fetcher(limits, resolver=lambda host, port: [shop.place])


def test_tls_keeps_the_name_though_the_connection_goes_to_an_address(shop: Peer, authority: Authority) -> None:
    shop.script["/"] = said(200, b"sealed")
    with tls_fetcher(shop) as fetcher:
        for _ in range(3):
            assert fetcher.get("https://shop.example/").content == b"sealed"
    assert authority.names[-1] == "shop.example"
    assert shop.asked[0].headers["host"] == "shop.example"
    assert shop.connections == 1


def test_a_certificate_for_another_name_or_of_nobody_known_is_not_accepted(
    shop: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_fetcher(shop) as fetcher:
        for url in ("https://other.example/", f"https://127.0.0.1:{shop.port}/"):
            with pytest.raises(NoConnection, match=r"its certificate is not accepted: .* mismatch") as failure:
                fetcher.get(url)
            assert not failure.value.retry
        for name in (*wire.CERTIFICATES, "SSL_CERT_DIR"):
            monkeypatch.delenv(name, raising=False)
        wire._tls.cache_clear()
        with pytest.raises(NoConnection, match="its certificate is not accepted: self-signed certificate"):
            fetcher.get("https://shop.example/")
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
        wire._tls.cache_clear()
        with pytest.raises(NoConnection, match=r"the certificates to trust, in /nowhere\.pem, cannot be read: No such"):
            fetcher.get("https://shop.example/")
    assert shop.asked == []


def test_limits_hold_under_tls_too(shop: Peer) -> None:
    shop.script["/drip"] = dripping(said(200, Content_Length="500"), b"x")
    shop.script["/pour"] = endless(said(200, Content_Length=""))
    with tls_fetcher(shop, Limits(seconds=0.5, max_bytes=100_000)) as fetcher:
        with pytest.raises(FetchFailed, match=r"the answer had not ended within 0\.5 s"):
            fetcher.get("https://shop.example/drip")
        with pytest.raises(TooLarge):
            fetcher.get("https://shop.example/pour")
    # Somebody who accepts the connection and says nothing, or what is not TLS.
    with socket.create_server(("127.0.0.1", 0)) as other:
        url, began = f"https://127.0.0.1:{other.getsockname()[1]}/", time.monotonic()
        failure = failing(url, Limits(connect_seconds=0.2))
        assert time.monotonic() - began < 2
        assert isinstance(failure, NoConnection)
        assert (failure.reason, failure.retry) == ("connecting took 0.2 s", True)
        other.accept()[0].close()
        threading.Thread(target=lambda: other.accept()[0].sendall(b"no TLS here\r\n"), daemon=True).start()
        failure = failing(url)
        assert isinstance(failure, NoConnection)
        assert failure.reason == "no secure connection: wrong version number"


# The rest


def test_importing_it_costs_an_idle_process_no_http_library() -> None:
    wanted = "import sys, nodes.fetching; print({'ssl', 'http.client', 'requests', 'idna'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", wanted], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
