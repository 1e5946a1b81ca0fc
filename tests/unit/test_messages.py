"""What children send: read when it is right, refused with the field's name when it is not, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import messages
from nodes.messages import ItemError
from nodes.protocol import LOG_LIMIT, FieldError

Reader = Callable[[Any], Any]
SHA256 = "0f" * 32

HUGE = st.sampled_from((2**63, -(2**63), 10**30, 10**400, 1e308, float("nan"), float("inf")))
TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(("\x00", "\ud800", "1" * 25))
SCALAR = st.none() | st.booleans() | st.integers(-2, 5) | HUGE | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def somehow(*names: str) -> st.SearchStrategy[Any]:
    """Objects with these fields, each of any value or left out."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON)) | JSON


ENTRY = somehow("allocation", "ranges", "errors", "failure", "rows", "segment", "offset", "seconds", "log")
NEARLY = st.fixed_dictionaries(
    {"allocation": st.integers(0, 5)},
    optional={
        "ranges": st.lists(st.lists(st.integers(0, 3) | SCALAR, min_size=2, max_size=4), max_size=2) | JSON,
        "errors": st.lists(st.tuples(SCALAR, TEXT | JSON, st.booleans() | JSON).map(list), max_size=2) | JSON,
        "failure": st.fixed_dictionaries({"kind": st.sampled_from(("crash", "error", "x"))}) | JSON,
        "rows": st.lists(st.lists(SCALAR, max_size=3), max_size=3) | JSON,
        "segment": st.sampled_from((SHA256, SHA256.upper(), SHA256 + "\n", "")) | JSON,
        "offset": SCALAR,
        "seconds": SCALAR,
    },
)
COUNTED = ("nodes", "leaves", "online", "capacity", "used", "queued", "depth")
CHILD = somehow(*COUNTED, "name", "role", "state", "below", "labels", "quotas", "types", "speeds", "beat_seconds_ago")
SUBTREE = st.fixed_dictionaries({}, optional={"children": st.lists(CHILD, max_size=2), "more": SCALAR}) | somehow(
    *COUNTED
)
ANSWER = st.fixed_dictionaries(
    {"id": st.integers(0, 5) | SCALAR, "status": st.sampled_from((200, 404, 504)) | SCALAR},
    optional={
        "detail": TEXT | JSON,
        "body": st.fixed_dictionaries({"children": st.lists(CHILD, max_size=2)})
        | somehow("node", "seconds_ago", "below"),
    },
)
BODIES: list[tuple[Reader, st.SearchStrategy[Any]]] = [
    (
        messages.read_beat,
        st.fixed_dictionaries({"role": st.just("relay"), "id": st.just("a" * 32), "subtree": SUBTREE}),
    ),
    (messages.read_tell, st.fixed_dictionaries({"answers": st.lists(ANSWER, max_size=2)}) | somehow("answers")),
    (messages.read_claim, somehow("boot", "slots", "wait", "held")),
    (
        messages.read_beat,
        somehow("boot", "hello", "held", "running", "progress", "cpu", "memory", "version", "executors", "carrier"),
    ),
    (messages.read_release, somehow("allocations", "detail")),
    (messages.read_accept, somehow("allocations")),
    (
        messages.read_report,
        st.fixed_dictionaries({"reports": st.lists(NEARLY | ENTRY, max_size=3) | JSON}, optional={"running": JSON}),
    ),
]


@pytest.mark.parametrize(("reader", "bodies"), BODIES)
@given(data=st.data())
def test_any_message_is_read_or_refused_and_never_breaks_the_reader(
    reader: Reader, bodies: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    with suppress(FieldError):
        reader(data.draw(bodies))


@pytest.mark.parametrize("where", ["rows", "ranges", "errors", "seconds", "failure"])
def test_a_message_is_refused_however_deep_it_is_nested(where: str) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    entry = {"allocation": 1, "ranges": [[0, 1, 1]], **{where: nested}}
    with pytest.raises(FieldError) as raised:
        messages.read_report({"reports": [entry]})
    assert raised.value.field.startswith("reports[0]")


def report(**fields: Any) -> Any:
    return {"reports": [{"allocation": 1, **fields}]}


def read(**fields: Any) -> messages.Entry:
    (entry,) = messages.read_report(report(**fields))
    return entry


_CHILD = "answers[0].body.children[0]"
_WRONG: list[tuple[str, Any]] = [
    *(("labels", {"a": 1}), ("labels", {str(each): "" for each in range(101)}), ("types", [1]), ("quotas", [1])),
    *(("speeds", {"echo": "fast"}), ("cpu", 101), ("carrier", "pigeon"), ("id", -1), ("below", [1])),
]
BAD: list[tuple[Reader, Any, str]] = [
    (messages.read_tell, {"answers": {}}, "answers"),
    (messages.read_tell, {"answers": [{"id": 1}] * 101}, "answers"),
    (messages.read_tell, {"answers": [{"status": 404}]}, "answers[0].id"),
    (messages.read_tell, {"answers": [{"id": 1, "status": 500}]}, "answers[0].status"),
    (messages.read_tell, {"answers": [{"id": 1}]}, "answers[0].body"),
    (messages.read_tell, {"answers": [{"id": 1, "body": {"children": [{}] * 1001}}]}, "answers[0].body.children"),
    (messages.read_tell, {"answers": [{"id": 1, "body": {"seconds_ago": -1}}]}, "answers[0].body.seconds_ago"),
    *(
        (messages.read_tell, {"answers": [{"id": 1, "body": {"children": [{field: value}]}}]}, f"{_CHILD}.{field}")
        for field, value in _WRONG
    ),
    (messages.read_claim, [], "body"),
    (messages.read_claim, {"slots": -1}, "slots"),
    (messages.read_claim, {"slots": True}, "slots"),
    (messages.read_claim, {"slots": 1.5}, "slots"),
    (messages.read_claim, {"wait": -1}, "wait"),
    (messages.read_claim, {"wait": "1"}, "wait"),
    (messages.read_claim, {"wait": 10**400}, "wait"),
    (messages.read_claim, {"wait": float("nan")}, "wait"),
    (messages.read_claim, {"held": "1"}, "held"),
    (messages.read_claim, {"held": [2**63]}, "held"),
    (messages.read_claim, {"held": [1] * 20_001}, "held"),
    (messages.read_claim, {"boot": 7}, "boot"),
    (messages.read_beat, {"progress": {"x": 1}}, "progress"),
    (messages.read_beat, {"progress": {"1": -1}}, "progress"),
    (messages.read_beat, {"progress": {"9" * 20: 1}}, "progress"),
    (messages.read_beat, {"progress": []}, "progress"),
    (messages.read_beat, {"cpu": -1}, "cpu"),
    (messages.read_beat, {"memory": "much"}, "memory"),
    (messages.read_beat, {"disk": float("inf")}, "disk"),
    (messages.read_beat, {"executors": "echo"}, "executors"),
    (messages.read_beat, {"executors": [1]}, "executors"),
    (messages.read_beat, {"carrier": "pigeon"}, "carrier"),
    (messages.read_beat, {"carrier": ["push"]}, "carrier"),
    (messages.read_release, {}, "allocations"),
    (messages.read_release, {"allocations": [1], "detail": None}, "detail"),
    (messages.read_accept, {"allocations": [-1]}, "allocations"),
    (messages.read_report, {}, "reports"),
    (messages.read_report, {"reports": [[]]}, "reports[0]"),
    (messages.read_report, {"reports": [{}]}, "reports[0].allocation"),
    (messages.read_report, {"reports": [{"allocation": "1"}]}, "reports[0].allocation"),
    (messages.read_report, {"reports": [{"allocation": 1}, {"allocation": 1}]}, "reports[1].allocation"),
    (messages.read_report, report(ranges=[[0, 1]]), "reports[0].ranges"),
    (messages.read_report, report(ranges=[[1, 1, 0]]), "reports[0].ranges"),
    (messages.read_report, report(ranges=[[0, 1, -1]]), "reports[0].ranges"),
    (messages.read_report, report(ranges=[[0, 1, 2]], rows=[["a"]]), "reports[0].rows"),
    (messages.read_report, report(ranges=[[0, 1, 1]]), "reports[0].rows"),
    (messages.read_report, report(rows="a"), "reports[0].rows"),
    (messages.read_report, report(segment=SHA256, rows=[["a"]]), "reports[0].rows"),
    (messages.read_report, report(segment="abc"), "reports[0].segment"),
    (messages.read_report, report(segment=SHA256 + "\n"), "reports[0].segment"),
    (messages.read_report, report(segment=SHA256, offset=-1), "reports[0].offset"),
    (messages.read_report, report(errors=[[0, "x"]]), "reports[0].errors"),
    (messages.read_report, report(errors=[[0, "x", 1]]), "reports[0].errors"),
    (messages.read_report, report(errors=[["0", "x", True]]), "reports[0].errors"),
    (messages.read_report, report(errors=[[0, None, True]]), "reports[0].errors"),
    (messages.read_report, report(failure="crash"), "reports[0].failure"),
    (messages.read_report, report(failure={"kind": "tired"}), "reports[0].failure.kind"),
    (messages.read_report, report(failure={"kind": "crash", "message": 1}), "reports[0].failure.message"),
    (messages.read_report, report(seconds=-1), "reports[0].seconds"),
    (messages.read_report, report(seconds=10**400), "reports[0].seconds"),
    (messages.read_report, report(log=1), "reports[0].log"),
]


@pytest.mark.parametrize(
    ("reader", "body", "field"), BAD, ids=lambda value: getattr(value, "__name__", repr(value)[:60])
)
def test_a_bad_value_is_refused_with_its_field(reader: Reader, body: Any, field: str) -> None:
    with pytest.raises(FieldError) as raised:
        reader(body)
    assert raised.value.field == field


def test_a_claim_without_anything_asks_for_one_slot_at_once() -> None:
    claim = messages.read_claim({})
    assert (claim.slots, claim.wait, claim.held) == (1, 0.0, ())


def test_a_beat_is_read_as_it_was_sent() -> None:
    beat = messages.read_beat(
        {
            "boot": "b1",
            "hello": True,
            "held": [1, 2],
            "running": [1],
            "progress": {"1": 7},
            "cpu": 12.5,
            "memory": 250,
            "executors": ["echo"],
            "carrier": "push",
            "leaving": True,
            "of a newer version": {},
        }
    )
    assert (beat.boot, beat.hello, beat.held, beat.running, beat.progress) == ("b1", True, (1, 2), (1,), {1: 7})
    assert (beat.cpu, beat.memory, beat.disk) == (12.5, 100.0, None)
    assert (beat.executors, beat.carrier, beat.leaving) == (("echo",), "push", True)


def test_only_true_is_a_hello_or_a_good_bye() -> None:
    beat = messages.read_beat({"hello": "yes", "leaving": 1})
    assert (beat.hello, beat.leaving) == (False, False)
    assert beat.executors is None


def test_an_entry_is_read_as_it_was_sent() -> None:
    entry = read(
        ranges=[[0, 2, 3], [3, 4, 0]],
        errors=[[2, "no such symbol", False]],
        rows=[["a", 0], ["a", 1], ["b", 0]],
        seconds=1.5,
        log="done",
    )
    assert entry.ranges == ((0, 2, 3), (3, 4, 0))
    assert entry.errors == (ItemError(2, "no such symbol", False),)
    assert (entry.rows, entry.inline, entry.segment) == (3, [["a", 0], ["a", 1], ["b", 0]], "")
    assert (entry.seconds, entry.log, entry.failure) == (1.5, "done", "")


def test_a_failure_stands_alone() -> None:
    entry = read(failure={"kind": "crash", "message": "killed"}, ranges=[[0, 9, 9]])
    assert (entry.failure, entry.message, entry.ranges, entry.inline) == ("crash", "killed", (), None)


def test_what_a_program_printed_never_costs_its_result() -> None:
    entry = read(log="a\x00b\ud800c" + "x" * 20_000, errors=[[0, "m\x00" + "y" * 5_000, True]])
    assert entry.log.startswith("a\ufffdb\ufffdc")
    assert len(entry.log) == LOG_LIMIT
    assert entry.errors[0].message.startswith("m\ufffd")
    assert len(entry.errors[0].message) == messages.TEXT_LIMIT


def test_the_same_content_is_the_same_report_whatever_its_time_and_log() -> None:
    content: dict[str, Any] = {"ranges": [[0, 1, 1]], "rows": [["a"]], "errors": [[1, "x", True]]}
    first = read(**content, seconds=1.0, log="one")
    assert read(**content, seconds=2.0, log="two").digest == first.digest
    assert len(first.digest) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [["b"]]},
        {"ranges": [[0, 2, 1]]},
        {"errors": [[1, "y", True]]},
        {"errors": [[1, "x", False]]},
        {"rows": [], "segment": SHA256},
        {"rows": [], "segment": SHA256, "offset": 1},
        {"failure": {"kind": "crash", "message": ""}},
        {"failure": {"kind": "error", "message": ""}},
        {"failure": {"kind": "crash", "message": "x"}},
    ],
)
def test_another_content_is_another_report(change: dict[str, Any]) -> None:
    content: dict[str, Any] = {"ranges": [[0, 1, 1]], "rows": [["a"]], "errors": [[1, "x", True]]}
    digests = {read(**content).digest, read(**content, segment="").digest, read(**{**content, **change}).digest}
    assert len(digests) == 2
