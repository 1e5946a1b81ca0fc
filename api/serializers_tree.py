"""What the native API says of a tree: a branch in short, and the nodes below a relay in full."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class Counts(serializers.Serializer[Any]):
    """Of all that hangs below a relay, however deep."""

    nodes = serializers.IntegerField(help_text="Nodes, relays among them.")
    leaves = serializers.IntegerField(help_text="Those that run work.")
    online = serializers.IntegerField(help_text="Nodes that are there.")
    capacity = serializers.IntegerField(help_text="Slots of the leaves that are there.")
    used = serializers.IntegerField(help_text="Slots with work that runs.")
    queued = serializers.IntegerField(help_text="Slots' worth of work that waits at the leaves.")
    depth = serializers.IntegerField(help_text="Levels below it.")


class ShortChild(serializers.Serializer[Any]):
    name = serializers.CharField()
    role = serializers.CharField(help_text="child or relay; standalone: the own worker of the server asked.")
    state = serializers.CharField(help_text="inactive, offline, draining or online.")
    capacity = serializers.IntegerField(help_text="Slots that it can be given now.")
    used = serializers.IntegerField(help_text="Slots with work that runs; of a relay, below it.")
    queued = serializers.IntegerField(help_text="Slots' worth of work that waits there.")
    below = Counts(allow_null=True, help_text="Of a relay that has said it.")


class Subtree(Counts):
    """What a relay says of all below it with each beat."""

    children = ShortChild(many=True, help_text="At most 20 of its own nodes: relays, then what is not there.")
    more = serializers.IntegerField(help_text="How many more there are.")


class ToldQuota(serializers.Serializer[Any]):
    task_type = serializers.CharField()
    item = serializers.CharField(help_text="Empty: the whole type.")
    slots = serializers.IntegerField()
    limit = serializers.IntegerField(allow_null=True)


class FullChild(ShortChild):
    """null: not known."""

    id = serializers.IntegerField(allow_null=True, help_text="At the server that it hangs at.")
    carrier = serializers.CharField(allow_null=True)
    allowed = serializers.IntegerField(allow_null=True, help_text="Slots that it may be given at most.")
    quotas = ToldQuota(many=True, allow_null=True)
    labels = serializers.DictField(child=serializers.CharField(), allow_null=True)
    version = serializers.CharField(allow_null=True)
    config_version = serializers.IntegerField(allow_null=True)
    types = serializers.ListField(child=serializers.CharField(), allow_null=True, help_text="What it runs.")
    speeds = serializers.DictField(child=serializers.FloatField(), allow_null=True, help_text="Seconds per item.")
    cpu = serializers.FloatField(allow_null=True, help_text="Percent.")
    memory = serializers.FloatField(allow_null=True, help_text="Percent.")
    beat_seconds_ago = serializers.FloatField(allow_null=True)
    below_seconds_ago = serializers.FloatField(allow_null=True, help_text="When it said what is below it.")


class Picture(serializers.Serializer[Any]):
    node = serializers.CharField(help_text="What the server that was asked calls itself.")
    live = serializers.BooleanField(help_text="Asked now; false: it is not there, and this is what it said last.")
    seconds_ago = serializers.FloatField(allow_null=True, help_text="How old that is; null: it never said anything.")
    below = Counts(allow_null=True)
    children = FullChild(many=True, help_text="Relays first, then by name.")
    more = serializers.IntegerField(help_text="How many more there are.")
