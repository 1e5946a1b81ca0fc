"""The one door to the state of runs, shards and allocations. Every way in ends in one of these verbs.

A verb reads what it needs, changes it by compare-and-set in one transaction, and wakes whoever waits after commit.
What a change shall be is decided by pure code: ``dispatch.allocator``, ``dispatch.attempts``, ``dispatch.ranges``.
"""

from dispatch.lifecycle.answered import once
from dispatch.lifecycle.beats import beat, seen
from dispatch.lifecycle.copies import copy, take_back, tell_superseded
from dispatch.lifecycle.ends import cancel, progress, retry
from dispatch.lifecycle.found import append
from dispatch.lifecycle.grants import OFFER_LIMIT, accept, claim, disconnected, expire, forgive, grant, offered, release
from dispatch.lifecycle.recalled import recall
from dispatch.lifecycle.reports import report
from dispatch.lifecycle.saving import damaged, saved
from dispatch.lifecycle.staged import begin, report_failure, report_staged, stage
from dispatch.lifecycle.submit import submit, submit_task

__all__ = [
    "OFFER_LIMIT",
    "accept",
    "append",
    "beat",
    "begin",
    "cancel",
    "claim",
    "copy",
    "damaged",
    "disconnected",
    "expire",
    "forgive",
    "grant",
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
]
