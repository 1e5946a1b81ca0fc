"""The one door to the state of runs, shards and allocations. Every way in ends in one of these verbs.

A verb loads what is there (``loading``), has pure code decide what shall become of it (``dispatch.deciding``, and
``dispatch.allocator`` for grants), writes the effects down by compare-and-set (``writing``), all in one transaction,
and wakes whoever waits after the commit.
"""

from dispatch.lifecycle.answered import once
from dispatch.lifecycle.beats import beat, beat_all, seen
from dispatch.lifecycle.copies import copy, take_back, tell_superseded
from dispatch.lifecycle.ends import cancel, progress, retry
from dispatch.lifecycle.grants import OFFER_LIMIT, accept, claim, grant, offered, release
from dispatch.lifecycle.growth import append
from dispatch.lifecycle.leases import disconnected, expire, forgive, unstick
from dispatch.lifecycle.recalled import recall, withdraw
from dispatch.lifecycle.reports import report
from dispatch.lifecycle.saving import copied, damaged, lost, not_copied, saved
from dispatch.lifecycle.staged import begin, report_failure, report_staged, stage
from dispatch.lifecycle.submit import Draft, draft, submit, submit_task

__all__ = [
    "OFFER_LIMIT",
    "Draft",
    "accept",
    "append",
    "beat",
    "beat_all",
    "begin",
    "cancel",
    "claim",
    "copied",
    "copy",
    "damaged",
    "disconnected",
    "draft",
    "expire",
    "forgive",
    "grant",
    "lost",
    "not_copied",
    "offered",
    "once",
    "progress",
    "recall",
    "release",
    "report",
    "report_failure",
    "report_staged",
    "retry",
    "saved",
    "seen",
    "stage",
    "submit",
    "submit_task",
    "take_back",
    "tell_superseded",
    "unstick",
    "withdraw",
]
