"""Addresses in canonical form: one page has one, whatever links to it looks like; what is no address is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.crawling.addresses import ADDRESS_LIMIT, KEY_LIMIT, canonical, host_of, key_of, origin_of, path_of

BASE = "https://example.org/a/b/c?d=e"


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("https://example.org", "https://example.org/"),
        ("HTTPS://Example.ORG/Case", "https://example.org/Case"),
        ("https://example.org:443/x", "https://example.org/x"),
        ("http://example.org:80/x", "http://example.org/x"),
        ("http://example.org:443/x", "http://example.org:443/x"),
        ("http://example.org:/x", "http://example.org/x"),
        ("https://example.org/x#part", "https://example.org/x"),
        ("https://example.org/x?#", "https://example.org/x"),
        ("https://example.org/a/./b/../c", "https://example.org/a/c"),
        ("https://example.org/../../x", "https://example.org/x"),
        ("https://example.org/a/..", "https://example.org/"),
        ("https://example.org/a/.", "https://example.org/a/"),
        ("https://example.org/a/%2e%2E/b", "https://example.org/b"),
        ("https://example.org/a//b", "https://example.org/a//b"),
        ("https://example.org/%7Euser/%61", "https://example.org/~user/a"),
        ("https://example.org/a%2fb", "https://example.org/a%2Fb"),
        ("https://example.org/100%", "https://example.org/100%25"),
        ("https://example.org/%zz", "https://example.org/%25zz"),
        ("https://example.org/a b", "https://example.org/a%20b"),
        ("https://example.org/grün", "https://example.org/gr%C3%BCn"),
        ("https://example.org/gr%c3%bcn", "https://example.org/gr%C3%BCn"),
        ("https://example.org/?b=2&a=1", "https://example.org/?b=2&a=1"),
        ("https://example.org/?q=a/b?c", "https://example.org/?q=a/b?c"),
        ("https://example.org/?q=<x>", "https://example.org/?q=%3Cx%3E"),
        ("  https://example.org/x\n", "https://example.org/x"),
        ("https://exam\tple.org/\nx", "https://example.org/x"),
        ("https:\\\\example.org\\x", "https://example.org/x"),
        ("https://example.org/?a\\b", "https://example.org/?a%5Cb"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://BÜCHER.example/", "https://xn--bcher-kva.example/"),
        ("https://ex%61mple.org/", "https://example.org/"),
        ("http://127.1/x", "http://127.0.0.1/x"),
        ("http://0x7f000001/", "http://127.0.0.1/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://[::0:1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_the_form(address: str, form: str) -> None:
    assert canonical(address) == form
    assert canonical(form) == form


@pytest.mark.parametrize(
    ("link", "form"),
    [
        ("x", "https://example.org/a/b/x"),
        ("../x", "https://example.org/a/x"),
        ("/x", "https://example.org/x"),
        ("?x=1", "https://example.org/a/b/c?x=1"),
        ("#top", "https://example.org/a/b/c?d=e"),
        ("", "https://example.org/a/b/c?d=e"),
        ("//other.org/x", "https://other.org/x"),
        ("\\\\other.org\\x", "https://other.org/x"),
    ],
)
def test_links_are_made_whole(link: str, form: str) -> None:
    assert canonical(link, BASE) == form


@pytest.mark.parametrize(
    "address",
    [
        "",
        "example.org",
        "ftp://example.org/",
        "javascript:alert(1)",
        "mailto:nobody@example.org",
        "data:text/html,x",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "https://exa mple.org/",
        "https://example.org:99999/",
        "https://example.org:x/",
        "https://user:secret@example.org/",
        "https://-example.org/",
        "https://exam|ple.org/",
        "http://1.2.3.999/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "https://example.org/" + "a" * ADDRESS_LIMIT,
        "https://example.org/" + "ä" * (ADDRESS_LIMIT // 4),
        "https://" + "a" * 300 + ".org/",
        "https://ex\ud800.org/",
    ],
)
def test_what_cannot_be_fetched_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        canonical(address)
    assert "secret" not in str(caught.value) or "user name" in str(caught.value)


def test_parameters_that_only_track_are_dropped_where_wished() -> None:
    address = "https://example.org/x?utm_source=a&id=7&UTM_Medium=b&fbclid=c&gclid"
    assert canonical(address, tracking=False) == "https://example.org/x?id=7"
    assert canonical(address) == address
    assert canonical("https://example.org/x?utm_source=a", tracking=False) == "https://example.org/x"


def test_a_query_is_written_in_the_encoding_of_its_page() -> None:
    assert canonical("/ü?q=ü", BASE, encoding="cp1252") == "https://example.org/%C3%BC?q=%FC"
    assert canonical("?q=中", BASE, encoding="cp1252") == "https://example.org/a/b/c?q=%26%2320013%3B"


def test_long_addresses_have_keys_that_fit_and_differ() -> None:
    base = "https://example.org/" + "x" * 300
    keys = {key_of(base), key_of(base + "y"), key_of("https://example.org/")}
    assert len(keys) == 3
    assert max(map(len, keys)) == KEY_LIMIT
    assert key_of("https://example.org/") == "https://example.org/"


def test_parts_of_an_address() -> None:
    address = "https://example.org:8080/a?b=c"
    assert (host_of(address), path_of(address), origin_of(address)) == (
        "example.org",
        "/a?b=c",
        "https://example.org:8080",
    )


@given(st.text(max_size=60), st.sampled_from([BASE, ""]))
def test_whatever_a_link_says_it_has_one_form_or_none(link: str, base: str) -> None:
    try:
        form = canonical(link, base)
    except ValueError:
        return
    assert form.isascii()
    assert form.isprintable()
    assert " " not in form
    assert "#" not in form
    assert canonical(form) == form
    assert canonical(form, BASE) == form
