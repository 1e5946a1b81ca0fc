"""What the native API says of why work waits and who had it, and how a what-if is asked and answered."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from api.serializers import RAN_BY, Name, NodeChange, NodeQuota, Real, Strict, Whole
from dispatch.explaining import reasons, supposed

CODES = ", ".join(reasons.RANK)


class WouldGrant(serializers.Serializer[Any]):
    node = serializers.CharField()
    start = serializers.IntegerField()
    stop = serializers.IntegerField()
    slots = serializers.IntegerField()
    reason = serializers.CharField()


class WouldRefuse(serializers.Serializer[Any]):
    node = serializers.CharField()
    code = serializers.CharField(help_text=CODES)
    reason = serializers.CharField()


class CountedReason(serializers.Serializer[Any]):
    """Nodes with one reason."""

    code = serializers.CharField(help_text=CODES)
    reason = serializers.CharField()
    nodes = serializers.IntegerField()
    names = serializers.ListField(child=serializers.CharField(), help_text="At most 5 of them.")
    text = serializers.CharField(help_text="Like: label region=eu: 3 nodes.")


class RunBefore(serializers.Serializer[Any]):
    run = serializers.IntegerField()
    name = serializers.CharField()
    type = serializers.CharField()
    why = serializers.CharField()


class Position(serializers.Serializer[Any]):
    """A run's place among those that have something to give."""

    position = serializers.IntegerField(help_text="1 is served first.")
    of = serializers.IntegerField()
    ahead = serializers.DictField(
        child=serializers.IntegerField(), help_text="Runs before it by why: priority, served (fewer slots), age."
    )
    before = RunBefore(many=True, help_text="The first 20 of these.")
    more = serializers.IntegerField(help_text="How many more there are.")


class PutOff(serializers.Serializer[Any]):
    """Shards that nobody gets before some time."""

    shards = serializers.IntegerField()
    items = serializers.IntegerField()
    until = serializers.DateTimeField(allow_null=True, help_text="When the first of them is due.")
    why = serializers.CharField()


class Waits(serializers.Serializer[Any]):
    """Why work waits, and what the next pass would do about it."""

    at = serializers.DateTimeField()
    waits_for = serializers.CharField(help_text="In a line: what it waits for, with the limit.")
    position = Position(allow_null=True, help_text="null: it has nothing to give now.")
    put_off = PutOff(allow_null=True)
    alone = serializers.BooleanField(
        help_text="Too many runs wait for a whole pass to be tried out: runs before it may take what 'grants' says."
    )
    grants = WouldGrant(many=True, help_text="What the next pass would do.")
    reasons = CountedReason(many=True, help_text="The refusals, counted, those nearest to taking it first.")
    refusals = WouldRefuse(many=True, help_text="Why each node takes no more of it.")
    counts = serializers.DictField(child=serializers.IntegerField(), help_text="Nodes by the code of their refusal.")


class Explanation(Waits):
    run = serializers.IntegerField()
    state = serializers.CharField()
    pending = serializers.IntegerField(help_text="Items that wait.")
    in_flight = serializers.IntegerField(help_text="Items with a node now.")
    more_grants = serializers.IntegerField()
    more_refusals = serializers.IntegerField()


class Attempt(serializers.Serializer[Any]):
    """One allocation of a shard's items: the receipt of why, when and what."""

    allocation = serializers.IntegerField()
    shard = serializers.IntegerField()
    start = serializers.IntegerField()
    stop = serializers.IntegerField()
    attempt = serializers.IntegerField()
    node = serializers.CharField(allow_null=True, help_text="null: it was removed.")
    state = serializers.CharField()
    ended = serializers.CharField(help_text="What the state means.")
    by = serializers.CharField(help_text="quota, free, look-ahead, operator, or other: a second copy and the like.")
    reason = serializers.CharField(help_text="Why this node, as it was when it was granted.")
    slots = serializers.IntegerField()
    granted_at = serializers.DateTimeField()
    delivered_at = serializers.DateTimeField(allow_null=True)
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    deadline = serializers.DateTimeField(allow_null=True, help_text="Of what has not ended: of its lease or offer.")
    seconds = serializers.FloatField(allow_null=True)
    rows = serializers.IntegerField()
    parts = serializers.IntegerField(help_text="Parts of it that a relay has reported.")
    receipt = serializers.IntegerField(allow_null=True, help_text="The parent's durable yes.")
    ran_by = serializers.ListField(child=serializers.CharField(), help_text=RAN_BY)
    error = serializers.CharField(allow_blank=True)


class ExplainedShard(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    start = serializers.IntegerField()
    stop = serializers.IntegerField()
    attempts = serializers.IntegerField(help_text="Attempts that failed.")
    deaths = serializers.IntegerField(help_text="Worker processes that died on it.")
    losses = serializers.IntegerField(help_text="Leases lost with it.")
    not_before = serializers.DateTimeField(allow_null=True)
    error = serializers.CharField(allow_blank=True)
    updated_at = serializers.DateTimeField()
    ran_by = serializers.ListField(child=serializers.CharField(), help_text=RAN_BY)


class Ahead(serializers.Serializer[Any]):
    """What of its own run is given out before it."""

    shards = serializers.IntegerField()
    items = serializers.IntegerField(help_text="Items in no shard yet.")


class ShardExplanation(serializers.Serializer[Any]):
    run = serializers.IntegerField()
    state = serializers.CharField(help_text="Of the shard; uncut: in no shard yet.")
    shard = ExplainedShard(allow_null=True)
    ahead = Ahead(allow_null=True)
    attempts = Attempt(many=True, help_text="Oldest first.")
    older = serializers.IntegerField(help_text="Attempts before these.")
    waiting = Waits(allow_null=True)


class ItemExplanation(ShardExplanation):
    index = serializers.IntegerField(help_text="Its number in the run, from 0.")
    indexes = serializers.ListField(child=serializers.IntegerField(), help_text="Where else the same item is.")
    item = serializers.JSONField()


# What-if


def _labels() -> serializers.DictField:
    return serializers.DictField(child=serializers.CharField(allow_blank=True), required=False)


class _Supposed(Strict):
    capacity = Whole(required=False, help_text="Slots, 1 to 10,000.")
    weight = Real(required=False)
    labels = _labels()
    quotas = serializers.ListField(
        child=NodeQuota(), required=False, max_length=1000, help_text="All that it would have."
    )
    active = serializers.BooleanField(required=False)
    draining = serializers.BooleanField(required=False)
    max_cpu = Real(required=False, allow_null=True)
    max_memory = Real(required=False, allow_null=True)

    validate_quotas = NodeChange.validate_quotas


class SupposedNode(_Supposed):
    """What would be otherwise of a node."""

    node = serializers.CharField(max_length=100, help_text="Its name.")


class SupposedNewNode(_Supposed):
    """A node that is not there: online, idle and of unknown speed."""

    name = Name(max_length=100)
    types = serializers.ListField(
        child=serializers.CharField(), required=False, max_length=100, help_text="Default: all that this server knows."
    )


class SupposedRun(Strict):
    run = Whole(max_value=2**63 - 1, help_text="A run that goes on.")
    priority = Whole(help_text="1 to 10.")


class SupposedRate(Strict):
    """A rate limit; new ones start with a full bucket, others keep what is left."""

    key = serializers.CharField(max_length=200, help_text="As rate limits have it, also with *.")
    per_second = Real(allow_null=True, help_text="Items a second. null: there would be no such limit.")
    burst = Whole(required=False, default=1)


def _some(child: serializers.Serializer[Any]) -> serializers.ListField:
    return serializers.ListField(child=child, required=False, default=list, max_length=1000)


class Question(Strict):
    """What shall be supposed; with nothing in it the answer is what the next pass does."""

    nodes = _some(SupposedNode())
    add = _some(SupposedNewNode())
    runs = _some(SupposedRun())
    rates = _some(SupposedRate())
    run = Whole(required=False, max_value=2**63 - 1, help_text="Only what is about this run, beside the nodes.")
    limit = Whole(
        required=False,
        min_value=1,
        max_value=supposed.MOST,
        default=supposed.LISTED,
        help_text="Entries of each list of the answer.",
    )


class SupposedChange(serializers.Serializer[Any]):
    what = serializers.CharField(help_text="node n1, run 12, rate host:a")
    field = serializers.CharField()
    now = serializers.JSONField(allow_null=True)
    then = serializers.JSONField(allow_null=True)


class LookedAt(serializers.Serializer[Any]):
    runs = serializers.IntegerField(help_text="Runs with something to give that were looked at.")
    of = serializers.IntegerField(help_text="Runs that go on.")
    nodes = serializers.IntegerField()
    complete = serializers.BooleanField(help_text="Nothing was left out: a pass on this state does exactly this.")
    limit = serializers.CharField(allow_blank=True, help_text="Which limit ended it, if one did.")


class Sums(serializers.Serializer[Any]):
    shards = serializers.IntegerField()
    items = serializers.IntegerField()
    slots = serializers.IntegerField()


class NodeSide(serializers.Serializer[Any]):
    state = serializers.CharField(help_text="online, offline or draining.")
    capacity = serializers.IntegerField()
    in_use = serializers.IntegerField(help_text="Slots, now.")
    gets = Sums()
    free = serializers.IntegerField(help_text="Slots, after the pass.")


class NodeBeside(serializers.Serializer[Any]):
    node = serializers.CharField()
    supposed = serializers.BooleanField(help_text="It is not there.")
    changes = serializers.BooleanField()
    before = NodeSide(allow_null=True, help_text="With the pass, as it is. null: it is not active.")
    after = NodeSide(allow_null=True, help_text="With the pass, as is supposed.")


class RunBeside(serializers.Serializer[Any]):
    run = serializers.IntegerField()
    name = serializers.CharField()
    type = serializers.CharField()
    priority = serializers.IntegerField(help_text="As is supposed.")
    changes = serializers.BooleanField()
    before = Sums()
    after = Sums()
    waits = serializers.IntegerField(help_text="Items that would still wait.")


class SupposedGrant(WouldGrant):
    run = serializers.IntegerField()
    shard = serializers.IntegerField(allow_null=True, help_text="null: it would be cut then.")
    attempt = serializers.IntegerField()
    by = serializers.CharField(help_text="quota, free or look-ahead.")


class StillWaits(serializers.Serializer[Any]):
    run = serializers.IntegerField()
    name = serializers.CharField()
    type = serializers.CharField()
    priority = serializers.IntegerField()
    items = serializers.IntegerField()
    position = serializers.IntegerField(help_text="In line after the pass.")
    waits_for = serializers.CharField()
    reasons = CountedReason(many=True)


class WaitingInAll(serializers.Serializer[Any]):
    runs = serializers.IntegerField()
    items = serializers.IntegerField()


class HeldBack(serializers.Serializer[Any]):
    shards = serializers.IntegerField()
    items = serializers.IntegerField()
    until = serializers.DateTimeField(allow_null=True)


class WhatIfAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    changes = SupposedChange(many=True, help_text="What differs from what is stored.")
    looked_at = LookedAt()
    before = Sums(help_text="What the next pass gives out as it is.")
    after = Sums(help_text="What it would give out.")
    nodes = NodeBeside(many=True, help_text="Those first for which something changes.")
    more_nodes = serializers.IntegerField()
    runs = RunBeside(many=True, help_text="Those that get something in one of the two.")
    more_runs = serializers.IntegerField()
    grants = SupposedGrant(many=True, help_text="In the order in which they would be given out.")
    more_grants = serializers.IntegerField()
    waiting = StillWaits(many=True, help_text="The first in line; reasons of 100 runs at most.")
    waiting_in_all = WaitingInAll()
    held_back = HeldBack(help_text="Shards that passes leave out: a back-off or a rate is to end first.")
