"""Keys and signed requests: what is accepted, and that nothing else is."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver
from http_message_signatures.algorithms import ED25519
from hypothesis import given
from hypothesis import strategies as st

from nodes import signing
from nodes.protocol import FieldError, Unauthenticated

ACCESS, SECRET, PUBLIC = signing.new_key()
NOW = 1_800_000_000
URL = "http://parent.example:8000/api/v1/agent/report?part=1&of=2"
BODY = b'{"reports": []}'


def signed(method: str = "POST", url: str = URL, body: bytes = BODY, **more) -> list[tuple[str, str]]:
    options = {"access_key": ACCESS, "secret_key": SECRET, "created": NOW, **more}
    return list(signing.sign(method, url, body, **options).items())


def verify(
    headers: list[tuple[str, str]],
    method: str = "POST",
    url: str = URL,
    now: float = NOW,
    find: Callable[[str], str] = {ACCESS: PUBLIC}.__getitem__,
) -> signing.Verified:
    return signing.verify(method, url, headers, find_public_key=find, now=now, max_age=300)


def replaced(headers: list[tuple[str, str]], old: str, new: str) -> list[tuple[str, str]]:
    result = [(name, value.replace(old, new)) for name, value in headers]
    assert result != headers
    return result


class Message:
    def __init__(self, method: str, url: str, headers: dict[str, str]) -> None:
        self.method, self.url, self.headers = method, url, headers


class Keys(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id: str):
        return signing._load(SECRET)


def signed_otherwise(**more) -> list[tuple[str, str]]:
    """Signed with the right key by another program, which leaves out or adds what ``more`` says."""
    headers = {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(BODY).digest()).decode()}:"}
    message = Message("POST", URL, headers)
    options = {
        "key_id": ACCESS,
        "created": dt.datetime.fromtimestamp(NOW, tz=dt.UTC),
        "nonce": "0123456789abcdef",
        "tag": "cascade",
        "covered_component_ids": signing.COVERED,
        "use_existing_digest": True,
        **more,
    }
    HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=Keys()).sign(message, **options)
    return list(message.headers.items())


# Keys


def test_a_new_key_has_the_announced_shape_and_is_new_each_time():
    assert re.fullmatch(r"CN[0-9a-f]{32}", ACCESS)
    assert re.fullmatch(r"CS[A-Za-z0-9_-]{43}", SECRET)
    assert re.fullmatch(r"[0-9a-f]{64}", PUBLIC)
    assert not set(signing.new_key()) & {ACCESS, SECRET, PUBLIC}


def test_the_public_key_belongs_to_the_seed_in_the_secret_key():
    seed = base64.urlsafe_b64decode(SECRET[2:] + "=")
    assert len(seed) == 32
    assert signing.public_key_of(SECRET) == PUBLIC


@pytest.mark.parametrize(
    "secret",
    ["", "CS", SECRET[2:], SECRET[:-1], f"{SECRET}A", f"cs{SECRET[2:]}", f" {SECRET}", "CS" + "é" * 43, "\udc80"],
)
def test_a_text_that_is_no_secret_key_is_refused_without_repeating_it(secret):
    with pytest.raises(FieldError) as raised:
        signing.public_key_of(secret)
    assert raised.value.field == "secret_key"
    assert not secret or secret not in str(raised.value).replace("CS and", "")


def test_a_secret_key_has_one_spelling_only():
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = SECRET[:-1] + letters[letters.index(SECRET[-1]) ^ 1]
    assert base64.urlsafe_b64decode(twin[2:] + "=") == base64.urlsafe_b64decode(SECRET[2:] + "=")
    with pytest.raises(FieldError):
        signing.public_key_of(twin)


# What is accepted


def test_a_signed_request_names_its_key_its_nonce_and_its_digest():
    verified = verify(signed(nonce="a-nonce-of-its-own"))
    assert (verified.access_key, verified.nonce) == (ACCESS, "a-nonce-of-its-own")
    assert signing.digest_matches(verified.digest, hashlib.sha256(BODY).digest())


def test_the_signature_is_over_what_rfc_9421_says():
    headers = dict(signed(nonce="0123456789abcdef"))
    parameters = headers["Signature-Input"].removeprefix("cascade=")
    digest = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    base = (
        '"@method": POST\n'
        '"@authority": parent.example:8000\n'
        '"@path": /api/v1/agent/report\n'
        '"@query": ?part=1&of=2\n'
        f'"content-digest": sha-256=:{digest}:\n'
        f'"@signature-params": {parameters}'
    )
    assert parameters == (
        f'("@method" "@authority" "@path" "@query" "content-digest");created={NOW};keyid="{ACCESS}"'
        ';alg="ed25519";nonce="0123456789abcdef";tag="cascade"'
    )
    signature = base64.b64decode(headers["Signature"].removeprefix("cascade=:").removesuffix(":"))
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC)).verify(signature, base.encode())


@pytest.mark.parametrize(
    ("signer", "server"),
    [
        ("http://parent/a", "http://parent/a"),
        ("http://parent:80/a", "http://parent/a"),
        ("https://parent/a", "http://parent/a"),
        ("https://parent:443/a?b", "https://parent/a?b"),
        ("ws://parent:80/ws/agent", "http://parent/ws/agent"),
        ("wss://PARENT/ws/agent", "http://parent/ws/agent"),
        ("ws://127.0.0.1:8000/ws/agent", "ws://127.0.0.1:8000/ws/agent"),
        ("http://[::1]:8000/", "http://[::1]:8000/"),
        ("http://parent", "http://parent/"),
        ("http://parent/a%2Fb/%C3%A9?q=%20+&q=2", "http://parent/a%2Fb/%C3%A9?q=%20+&q=2"),
    ],
)
def test_both_sides_of_one_request_agree_on_its_address(signer, server):
    assert verify(signed("GET", signer, b""), "GET", server).access_key == ACCESS


def test_the_clock_is_asked_where_no_time_is_given_and_every_nonce_is_another():
    first, second = (dict(signed(created=None)) for _ in range(2))
    assert first["Signature-Input"] != second["Signature-Input"]
    assert verify(list(first.items()), now=time.time()).nonce != verify(list(second.items()), now=time.time()).nonce


def test_a_body_that_is_streamed_can_be_signed_by_its_hash():
    digest = hashlib.sha256(BODY).digest()
    assert dict(signed(body=b"", body_sha256=digest))["Content-Digest"] == dict(signed())["Content-Digest"]


def test_a_signature_of_somebody_else_beside_ours_does_no_harm():
    headers = dict(signed())
    proxied = [
        ("content-digest", headers["Content-Digest"]),
        ("signature-input", 'proxy=("@path");created=1;keyid="proxy";tag="edge"'),
        ("signature-input", headers["Signature-Input"]),
        ("signature", "proxy=:AAAA:"),
        ("signature", headers["Signature"]),
    ]
    assert verify(proxied).access_key == ACCESS


# What is not


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("PUT", URL),
        ("POST", URL.replace("report", "release")),
        ("POST", URL.replace("/agent/", "/%61gent/")),
        ("POST", URL.replace("part=1", "part=2")),
        ("POST", URL.partition("?")[0]),
        ("POST", f"{URL}&more=1"),
        ("POST", f"{URL}#more"),
        ("POST", URL.replace("parent.example", "other.example")),
        ("POST", URL.replace(":8000", ":8001")),
    ],
)
def test_a_changed_method_path_query_or_host_is_refused(method, url):
    with pytest.raises(Unauthenticated):
        verify(signed(), method, url)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"created={NOW}", f"created={NOW + 1}"),
        ("0123456789abcdef", "0123456789abcdeg"),
        ('alg="ed25519"', 'alg="hmac-sha256"'),
        (';alg="ed25519"', ""),
        (';tag="cascade"', ""),
        ('tag="cascade"', 'tag="other"'),
        (f";created={NOW}", ""),
        (f"created={NOW}", f"created={NOW}.5"),
        (f"created={NOW}", f'created="{NOW}"'),
        (';nonce="0123456789abcdef"', ""),
        ('"@path" ', ""),
        ("sha-256=:", "sha-512=:"),
    ],
)
def test_a_changed_header_is_refused(old, new):
    with pytest.raises(Unauthenticated):
        verify(replaced(signed(nonce="0123456789abcdef"), old, new))


def test_a_changed_digest_is_refused():
    other = dict(signed(body=b"other"))["Content-Digest"]
    headers = [(name, other if name == "Content-Digest" else value) for name, value in signed()]
    with pytest.raises(Unauthenticated):
        verify(headers)


@pytest.mark.parametrize("missing", signing.COVERED)
def test_a_signature_that_leaves_a_part_uncovered_is_refused(missing):
    covered = [name for name in signing.COVERED if name != missing]
    with pytest.raises(Unauthenticated, match=missing):
        verify(signed_otherwise(covered_component_ids=covered))


def test_a_signature_that_covers_nothing_is_refused():
    with pytest.raises(Unauthenticated):
        verify(signed_otherwise(covered_component_ids=[]))


@pytest.mark.parametrize(
    "covered",
    [
        (*signing.COVERED, "@scheme"),
        (*signing.COVERED, "@target-uri"),
        (*signing.COVERED[:-1], '"content-digest";sf'),
        (*signing.COVERED[:-1], '"content-digest";key="sha-256"'),
        (*signing.COVERED, '"content-digest";key="sha-256"'),
        (*(name for name in signing.COVERED if name != "@query"), '"@query-param";name="part"'),
    ],
)
def test_a_signature_that_covers_more_than_the_profile_or_parts_of_it_is_refused(covered):
    with pytest.raises(Unauthenticated, match="cover"):
        verify(signed_otherwise(covered_component_ids=covered))


def test_the_order_of_what_is_covered_is_the_signers_to_choose():
    assert verify(signed_otherwise(covered_component_ids=signing.COVERED[::-1])).access_key == ACCESS


@pytest.mark.parametrize("more", [{"tag": None}, {"tag": "other"}])
def test_a_signature_for_another_purpose_is_refused(more):
    with pytest.raises(Unauthenticated):
        verify(signed_otherwise(**more))


@pytest.mark.parametrize("nonce", [None, "", "x" * 15, "x" * 65])
def test_a_nonce_that_is_missing_short_or_long_is_refused(nonce):
    with pytest.raises(Unauthenticated, match="nonce"):
        verify(signed_otherwise(nonce=nonce))


@pytest.mark.parametrize("nonce", ["x" * 16, "x" * 64])
def test_a_nonce_of_the_least_and_the_most_length_is_accepted(nonce):
    assert verify(signed_otherwise(nonce=nonce)).nonce == nonce


@pytest.mark.parametrize("nonce", ["0123456789abcdef ", "0123456789abcdef;", "0123456789:abcdef", '"123456789abcdef'])
def test_a_nonce_of_other_characters_is_refused(nonce):
    with pytest.raises(Unauthenticated, match="nonce"):
        verify(signed_otherwise(nonce=nonce))


@pytest.mark.parametrize(
    "nonce", ["MDEyMzQ1Njc4OWFiY2RlZg==", "3f0c8a52-7d7e-4b27-9a3f-2d1e8c5b6a90", "a_b.c~d+e/f-0123456"]
)
def test_nonces_as_other_programs_make_them_are_accepted(nonce):
    assert verify(signed_otherwise(nonce=nonce)).nonce == nonce


@pytest.mark.parametrize(
    "key_id", ["", "CN", "CN1234567", "CN" + "a" * 39, "XX0123456789", "CN01234567 9", "CN0123456'--"]
)
def test_a_key_id_that_is_no_access_key_is_not_looked_up(key_id):
    looked: list[str] = []

    def find(name: str) -> str:
        looked.append(name)
        return PUBLIC

    with pytest.raises(Unauthenticated, match="keyid"):
        verify(signed_otherwise(key_id=key_id), find=find)
    assert not looked


def test_a_parameter_that_the_profile_does_not_know_is_refused():
    with pytest.raises(Unauthenticated, match="more"):
        verify(replaced(signed(), ';tag="cascade"', ';tag="cascade";more=1'))


def test_a_signature_that_ends_before_it_begins_is_refused():
    with pytest.raises(Unauthenticated, match="expires"):
        verify(signed_otherwise(expires=dt.datetime.fromtimestamp(NOW - 1, tz=dt.UTC)), now=NOW - 10)


def test_more_signatures_than_a_few_are_refused_before_they_are_parsed():
    headers = dict(signed())
    beside = "".join(f', s{number}=("@path");tag="x"' for number in range(signing.SIGNATURES_LIMIT))
    values = "".join(f", s{number}=:AAAA:" for number in range(signing.SIGNATURES_LIMIT))
    headers["Signature-Input"] += beside
    headers["Signature"] += values
    with pytest.raises(Unauthenticated, match="more than 4 signatures"):
        verify(list(headers.items()))
    headers["Signature-Input"] = headers["Signature-Input"].rpartition(", ")[0]
    headers["Signature"] = headers["Signature"].rpartition(", ")[0]
    assert verify(list(headers.items())).access_key == ACCESS


def test_a_request_signed_twice_over_is_refused():
    first, second = dict(signed_otherwise(label="one")), dict(signed_otherwise(label="two"))
    both = [
        ("Content-Digest", first["Content-Digest"]),
        ("Signature-Input", f"{first['Signature-Input']}, {second['Signature-Input']}"),
        ("Signature", f"{first['Signature']}, {second['Signature']}"),
    ]
    with pytest.raises(Unauthenticated, match="2 signatures"):
        verify(both)


def test_a_signature_of_another_key_is_refused():
    _, other, _ = signing.new_key()
    with pytest.raises(Unauthenticated, match="another key"):
        verify(signed(secret_key=other))


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_a_missing_header_is_named(name):
    with pytest.raises(Unauthenticated, match=name.lower()):
        verify([header for header in signed() if header[0] != name])


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_a_header_of_megabytes_is_refused_before_it_is_parsed(name):
    headers = [*signed(), (name, "x" * 1_000_000)]
    with pytest.raises(Unauthenticated, match="characters"):
        verify(headers)


def test_what_the_look_up_of_the_key_raises_comes_out_as_it_is():
    class DatabaseAway(Exception):
        pass

    def find(access_key: str) -> str:
        raise DatabaseAway

    with pytest.raises(DatabaseAway):
        verify(signed(), find=find)


@given(
    st.tuples(
        st.text(max_size=60) | st.sampled_from([value for _, value in signed()]),
        st.text(max_size=60)
        | st.sampled_from(['cascade=();tag="cascade"', "cascade=1", "cascade=(1 2)", "a=(), a=()"]),
        st.text(max_size=60) | st.sampled_from(["cascade=:AAAA:", "cascade=1", "cascade=::", "cascade"]),
    ),
    st.sampled_from([URL, "", "http://", "http://[", "http://a b/", "http://parent:x/", "http://parent/%zz"]),
)
def test_whatever_stands_in_the_headers_the_answer_is_unauthenticated(values, url):
    names = ("Content-Digest", "Signature-Input", "Signature")
    with pytest.raises(Unauthenticated):
        verify(list(zip(names, values, strict=True)), url=url)


@pytest.mark.parametrize("url", ["/relative", "http://parent/a b", "http://parent/#part", "nonsense"])
def test_an_address_that_cannot_be_signed_is_named(url):
    with pytest.raises(FieldError) as raised:
        signed(url=url)
    assert raised.value.field == "url"
    assert url in raised.value.message


# Time


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_a_signature_within_the_window_is_accepted_on_both_sides(offset):
    assert verify(signed(), now=NOW + offset).access_key == ACCESS


@pytest.mark.parametrize("offset", [-301, 301, 10 * 60, -10 * 60, 10**12])
def test_a_signature_outside_the_window_is_told_the_servers_time(offset):
    with pytest.raises(signing.ClockError) as raised:
        verify(signed(), now=NOW + offset)
    assert float(raised.value.as_dict()["time"]) == NOW + offset
    assert raised.value.status == 401


def test_a_signer_that_takes_over_the_servers_time_is_accepted():
    ahead = NOW + 600
    with pytest.raises(signing.ClockError) as raised:
        verify(signed(created=ahead))
    offset = float(raised.value.as_dict()["time"]) - ahead
    assert verify(signed(created=int(ahead + offset))).access_key == ACCESS


def test_only_rightly_signed_requests_are_told_the_time():
    with pytest.raises(Unauthenticated) as raised:
        verify(signed(), url=URL.replace("report", "release"), now=NOW + 1000)
    assert not isinstance(raised.value, signing.ClockError)


def test_a_signature_whose_own_end_has_passed_is_refused():
    ends = dt.datetime.fromtimestamp(NOW + 10, tz=dt.UTC)
    assert verify(signed_otherwise(expires=ends), now=NOW + 10).access_key == ACCESS
    with pytest.raises(signing.ClockError):
        verify(signed_otherwise(expires=ends), now=NOW + 11)


# Digests


@pytest.mark.parametrize(
    ("header", "fits"),
    [
        ("sha-256=:{}:", True),
        ("sha-512=:AAAA:, sha-256=:{}:", True),
        ("sha-256=:AAAA:", False),
        ("sha-512=:{}:", False),
        ("sha-256={}", False),
        ("sha-256=1", False),
        ("sha-256=(:{}:)", False),
        ("", False),
        ("é", False),
        (":::", False),
    ],
)
def test_a_digest_fits_only_the_body_it_names(header, fits):
    digest = hashlib.sha256(BODY).digest()
    assert signing.digest_matches(header.format(base64.b64encode(digest).decode()), digest) is fits


def test_an_empty_body_has_a_digest_too():
    verified = verify(signed("GET", body=b""), "GET")
    assert signing.digest_matches(verified.digest, hashlib.sha256(b"").digest())
    assert not signing.digest_matches(verified.digest, hashlib.sha256(BODY).digest())
