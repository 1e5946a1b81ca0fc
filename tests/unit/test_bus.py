"""What is said between processes fits into PostgreSQL's notifications, and nothing of it is left out."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from dispatch.bus import PAYLOAD_BYTES, pieces

MESSAGES = st.one_of(
    st.just({"type": "node.work"}),
    st.builds(lambda ids: {"type": "node.cancel", "ids": ids}, st.lists(st.integers(0, 2**62), max_size=3000)),
)
CANCEL = {"type": "node.cancel", "ids": list(range(10**9, 10**9 + 3000))}
TOLD = st.lists(
    st.tuples(st.lists(st.integers(1, 2**62), min_size=1, max_size=2000, unique=True), MESSAGES), max_size=5
)


def said(payloads):
    """Every (node, type, id) that is in them; id None for a message without ids."""
    found = set()
    for payload in payloads:
        for nodes, message in json.loads(payload)["tell"]:
            found |= {(node, message["type"], each) for node in nodes for each in message.get("ids") or [None]}
    return found


# Long ones are rare among those that are made up.
@example(
    told=[(list(range(10**6, 10**6 + 3000)), {"type": "node.work"}), ([1], CANCEL), ([2], CANCEL)], names={"saver"}
)
@given(told=TOLD, names=st.sets(st.sampled_from(["dispatcher", "saver", "changed"])))
def test_however_much_there_is_to_say_it_is_said_in_pieces_that_fit(told, names):
    payloads = list(pieces("me", names, told))
    assert all(len(payload.encode()) <= PAYLOAD_BYTES for payload in payloads)
    assert {name for payload in payloads for name in json.loads(payload)["set"]} == names
    # Messages without ids and those about none say the same.
    wanted = {
        (node, message["type"], each)
        for nodes, message in told
        for node in nodes
        for each in message.get("ids") or [None]
    }
    assert said(payloads) == wanted


def test_nothing_to_say_is_no_message():
    assert list(pieces("me", [], [])) == []
