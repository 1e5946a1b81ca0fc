"""Task, Run, Shard, Allocation, Receipt: what is to be done, and what became of it.

Only ``dispatch.lifecycle`` changes a state here.
"""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from dispatch.states import AllocationState, RunState, ShardState
from nodes.models import Node


def _choices(states: type[RunState] | type[ShardState] | type[AllocationState]) -> list[tuple[str, str]]:
    return [(state.value, state.value) for state in states]


class Work(models.Model):
    """What a task defines and a run keeps as it was when it was submitted."""

    type = models.CharField(max_length=60)
    params = models.JSONField(default=dict, blank=True)
    priority = models.PositiveSmallIntegerField(
        default=5, validators=[MinValueValidator(1), MaxValueValidator(10)], help_text="1 to 10; higher goes first."
    )
    timeout = models.FloatField(
        default=300.0,
        validators=[MinValueValidator(0.1), MaxValueValidator(7 * 86_400)],
        help_text="Seconds one shard may run.",
    )
    max_attempts = models.PositiveSmallIntegerField(
        default=3, validators=[MinValueValidator(1), MaxValueValidator(100)]
    )
    backoff = models.FloatField(
        default=1.0,
        validators=[MinValueValidator(0), MaxValueValidator(86_400)],
        help_text="Seconds before the second attempt; doubles with each.",
    )
    shard_size = models.PositiveIntegerField(default=0, help_text="Items per shard; 0: sized for the node.")
    balancer = models.CharField(max_length=200, default="most_free")
    labels = models.JSONField(default=dict, blank=True, help_text="Only nodes with all these labels.")

    class Meta:
        abstract = True


WORK_FIELDS = tuple(field.name for field in Work._meta.local_fields)


class Task(Work):
    """A definition that can be run again and again."""

    name = models.CharField(max_length=200, unique=True)
    items = models.JSONField(default=list, blank=True)
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Run(Work):
    """One execution over a frozen list of ``count`` items, numbered 0 to count - 1.

    Items before ``cut`` are in shards; the rest is still in one piece. ``saved + failed + quarantined +
    cancelled`` (numbers of items) reach ``count`` when the run ends.
    """

    task = models.ForeignKey(Task, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs")
    name = models.CharField(max_length=200, blank=True)
    state = models.CharField(max_length=12, choices=_choices(RunState), default=RunState.RUNNING)
    count = models.PositiveIntegerField()
    cut = models.PositiveIntegerField(default=0)
    saved = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    quarantined = models.PositiveIntegerField(default=0)
    cancelled = models.PositiveIntegerField(default=0)
    rows = models.PositiveBigIntegerField(default=0, help_text="Rows saved.")
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True)
    submitted_by = models.CharField(max_length=150, blank=True)
    idempotency_key = models.CharField(max_length=200, null=True, unique=True)
    fingerprint = models.CharField(
        max_length=64, blank=True, help_text="What the key stood for: sha256 of the submission."
    )

    # Last: SQLite walks over a large blob to reach the columns behind it.
    items = models.BinaryField(help_text="See dispatch.items.")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["state", "-id"]), models.Index(fields=["-ended_at"])]

    def __str__(self) -> str:
        return self.name or f"run {self.pk}"

    @property
    def done(self) -> int:
        """Items in an end state."""
        return self.saved + self.failed + self.quarantined + self.cancelled


class Shard(models.Model):
    """Items [start, stop) of a run: the unit that is allocated."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="shards")
    start = models.PositiveIntegerField()
    stop = models.PositiveIntegerField()
    state = models.CharField(max_length=12, choices=_choices(ShardState), default=ShardState.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Attempts that failed.")
    deaths = models.PositiveSmallIntegerField(default=0, help_text="Worker processes that died on it.")
    losses = models.PositiveSmallIntegerField(default=0, help_text="Leases lost with it.")
    not_before = models.DateTimeField(null=True, help_text="Back-off: not allocated earlier.")
    error = models.TextField(blank=True)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["run_id", "start"]
        indexes = [
            models.Index(fields=["run", "state", "start"]),
            models.Index(fields=["state", "run", "id"], name="shard_by_state"),
        ]

    def __str__(self) -> str:
        return f"run {self.run_id} [{self.start}, {self.stop})"


class Receipt(models.Model):
    """The parent's durable yes to a batch of reports, and where their rows wait until they are saved.

    ``manifest`` lists the accepted entries: {"allocation", "run", "node", "ranges": [[start, stop, rows]…],
    "offset": first row in the segment, "digest": sha256 of the report}. ``payload`` holds inline rows (small
    results ride in this very transaction); larger ones are the spool file named by ``segment``.
    """

    node = models.ForeignKey(Node, null=True, on_delete=models.SET_NULL, related_name="receipts")
    type = models.CharField(max_length=60)
    created_at = models.DateTimeField(default=timezone.now)
    manifest = models.JSONField()
    payload = models.BinaryField(null=True)
    segment = models.CharField(max_length=64, blank=True, db_index=True)
    rows = models.PositiveBigIntegerField(default=0)
    saved_at = models.DateTimeField(null=True)
    purged_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["id"], name="receipt_spooled", condition=models.Q(saved_at=None)),
            models.Index(
                fields=["id"], name="receipt_unpurged", condition=models.Q(saved_at__isnull=False, purged_at=None)
            ),
        ]

    def __str__(self) -> str:
        return f"receipt {self.pk}"


class Allocation(models.Model):
    """One attempt at one shard by one node. Its id is the fencing token.

    ``deadline`` is the end of the lease once ``delivered``, before that the end of the offer.
    """

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="allocations")
    shard = models.ForeignKey(Shard, on_delete=models.CASCADE, related_name="allocations")
    node = models.ForeignKey(Node, null=True, on_delete=models.SET_NULL, related_name="allocations")
    type = models.CharField(max_length=60)
    item = models.CharField(max_length=200, blank=True, help_text="The item's key, where a quota names it.")
    start = models.PositiveIntegerField()
    stop = models.PositiveIntegerField()
    attempt = models.PositiveSmallIntegerField(default=1)
    state = models.CharField(max_length=12, choices=_choices(AllocationState), default=AllocationState.PENDING)
    delivered = models.BooleanField(default=False)
    deadline = models.DateTimeField()
    reason = models.CharField(max_length=300, help_text="Why this node.")
    granted_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    seconds = models.FloatField(null=True, help_text="Running time, by the child.")
    progress = models.PositiveIntegerField(default=0, help_text="Items done, by the last beat.")
    rows = models.PositiveIntegerField(default=0)
    receipt = models.ForeignKey(Receipt, null=True, on_delete=models.SET_NULL, related_name="allocations")
    error = models.TextField(blank=True)
    log = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["run", "-id"]),
            models.Index(fields=["shard"]),
            # Not partial ones: Django binds the states as parameters, and SQLite then does not see that they fit.
            models.Index(fields=["state", "node", "type", "item"], name="allocation_live"),
            models.Index(fields=["state", "deadline"], name="allocation_deadline"),
        ]

    def __str__(self) -> str:
        return f"allocation {self.pk}"
