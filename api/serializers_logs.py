"""Lines of a run's logs, as the native API shows them."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class LogLine(serializers.Serializer[Any]):
    """A line of a shard's log."""

    number = serializers.IntegerField(help_text="In the run, from 1 on, in the order in which lines came.")
    at = serializers.DateTimeField(help_text="When it came here.")
    allocation = serializers.IntegerField(help_text="The attempt that printed it.")
    shard = serializers.IntegerField()
    start = serializers.IntegerField(help_text="The shard's first item.")
    stop = serializers.IntegerField(help_text="The item after its last.")
    attempt = serializers.IntegerField()
    node = serializers.IntegerField(allow_null=True)
    node_name = serializers.CharField(allow_blank=True)
    text = serializers.CharField(allow_blank=True)
    continues = serializers.BooleanField(help_text="It goes on with the last line of this attempt, which had no end.")
    missing = serializers.IntegerField(help_text="Characters of the attempt's log right before it that are not kept.")


class LogLines(serializers.Serializer[Any]):
    """Some lines, ascending."""

    newest = serializers.IntegerField(help_text="The number of the run's last line; 0: it has none.")
    first = serializers.IntegerField(help_text="From this number on everything was looked at,")
    last = serializers.IntegerField(help_text="up to this one: follow with after=<last>.")
    previous = serializers.URLField(allow_null=True, help_text="Older lines; null: there are none.")
    next = serializers.URLField(help_text="What comes after these, now or later.")
    results = LogLine(many=True)
