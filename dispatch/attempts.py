"""What becomes of a shard whose attempt came to nothing. Pure: counts in, verdict out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Failure(StrEnum):
    """How an attempt ended without a result."""

    ERROR = "error"  # the executor could not work at all
    TIMEOUT = "timeout"  # the worker was stopped at the task's time-out
    CRASH = "crash"  # the worker process died
    LOST = "lost"  # the lease expired
    RETURNED = "returned"  # never begun: given back, or not fetched in time


class Verdict(StrEnum):
    AGAIN = "again"
    SPLIT = "split"
    FAILED = "failed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Record:
    """A shard's history: attempts that failed, workers that died on it, leases lost with it."""

    items: int
    attempts: int = 0
    deaths: int = 0
    losses: int = 0


@dataclass(frozen=True)
class Limits:
    max_attempts: int
    backoff: float
    worker_deaths: int


@dataclass(frozen=True)
class Outcome:
    """``record`` is what the shard (or, after a split, each half) goes on with; ``delay`` in seconds."""

    verdict: Verdict
    record: Record
    delay: float = 0.0


LOSSES_PER_DEATH = 3
"""A lost lease blames the machine more than the item, so it takes so many to weigh as much as a dead worker."""
LONGEST_BACKOFF = 3600.0


def backoff(limits: Limits, attempts: int) -> float:
    """Seconds before the next attempt after ``attempts`` that failed: doubling, at most an hour."""
    return float(min(limits.backoff * 2.0 ** min(attempts - 1, 30), LONGEST_BACKOFF))


def after(failure: Failure, shard: Record, limits: Limits) -> Outcome:
    """The verdict on ``shard`` after one more ``failure``.

    A shard that keeps killing workers, or hangs until the time-out, is cut in half until the bad item stands alone;
    a half starts one death (or attempt) short of the next cut, so that finding one bad item among n costs
    about log2(n) more deaths, not three times as many.
    """
    if failure is Failure.RETURNED:
        return Outcome(Verdict.AGAIN, shard)
    if failure is Failure.ERROR:
        tried = replace(shard, attempts=shard.attempts + 1)
        if tried.attempts >= limits.max_attempts:
            return Outcome(Verdict.FAILED, tried)
        return Outcome(Verdict.AGAIN, tried, backoff(limits, tried.attempts))
    if failure is Failure.TIMEOUT:
        tried = replace(shard, attempts=shard.attempts + 1)
        if tried.attempts < limits.max_attempts:
            return Outcome(Verdict.AGAIN, tried, backoff(limits, tried.attempts))
        if shard.items > 1:
            return Outcome(Verdict.SPLIT, replace(tried, attempts=limits.max_attempts - 1))
        return Outcome(Verdict.FAILED, tried)
    if failure is Failure.CRASH:
        tried = replace(shard, deaths=shard.deaths + 1)
        enough = tried.deaths >= limits.worker_deaths
        half = replace(tried, deaths=limits.worker_deaths - 1)
    else:
        tried = replace(shard, losses=shard.losses + 1)
        most = limits.worker_deaths * LOSSES_PER_DEATH
        enough = tried.losses >= most
        half = replace(tried, losses=most - 1)
    if not enough:
        return Outcome(Verdict.AGAIN, tried)
    if shard.items > 1:
        return Outcome(Verdict.SPLIT, half)
    return Outcome(Verdict.QUARANTINED, tried)
