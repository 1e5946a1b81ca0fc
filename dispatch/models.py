"""Task, Run, Shard, Allocation, Receipt: what is to be done, and what became of it; and what recurring work needs
beside: sources, rates, webhooks, the sync log.

Only ``dispatch.lifecycle`` changes the state of a run, a shard or an allocation.
"""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext

from dispatch.states import AllocationState, RunState, ShardState
from nodes.models import Node


def _choices(states: type[RunState] | type[ShardState] | type[AllocationState]) -> list[tuple[str, str]]:
    return [(state.value, state.value) for state in states]


ISLAND_LIMIT = 30 * 86_400


class Fallback(models.TextChoices):
    """Whether the parent's own worker may run something."""

    ALLOWED = "allowed"
    REQUIRED = "required"
    NEVER = "never"


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
    affinity = models.JSONField(
        default=dict, blank=True, help_text="Nodes with these labels are preferred; the others still count."
    )
    rate_key = models.CharField(
        max_length=200,
        blank=True,
        help_text="Which rate limit holds for its items: a text, with {host}, {source} or {item} filled in.",
    )
    fallback = models.CharField(
        max_length=8,
        choices=Fallback.choices,
        default=Fallback.ALLOWED,
        help_text="May the parent itself run it when no node can; must it; or never.",
    )
    island_seconds = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(ISLAND_LIMIT)],
        help_text="So long a relay that is cut off from the node above goes on with it; 0: not at all; empty: as long "
        "as it takes.",
    )

    class Meta:
        abstract = True


WORK_FIELDS = tuple(field.name for field in Work._meta.local_fields)


class Misfire(models.TextChoices):
    """What becomes of fire times that passed while the scheduler was away or stopped."""

    SKIP = "skip"
    ONE = "one"
    ALL = "all"


class Task(Work):
    """A definition that can be run again and again."""

    name = models.CharField(max_length=200, unique=True)
    items = models.JSONField(default=list, blank=True)
    source_kind = models.CharField(
        max_length=10,
        blank=True,
        help_text="With no items of its own: the keys of all active sources of this kind when a run begins.",
    )
    items_column = models.CharField(
        max_length=140,
        blank=True,
        help_text="With no items of its own: the values of this column when a run begins, like kline.symbol.",
    )
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    cron = models.CharField(max_length=100, blank=True, help_text="Five fields, like '*/15 9-17 * * 1-5'.")
    time_zone = models.CharField(max_length=60, blank=True, help_text="Of the cron fields; empty: the server's.")
    misfire = models.CharField(
        max_length=4,
        choices=Misfire.choices,
        default=Misfire.ONE,
        help_text="What becomes of fire times that passed while nobody looked: none of them, one run, or all.",
    )
    fired_at = models.DateTimeField(null=True, editable=False, help_text="The last fire time dealt with.")
    next_fire_at = models.DateTimeField(null=True, editable=False, db_index=True)

    webhook_url = models.CharField(max_length=500, blank=True, help_text="Told when a run of this task has ended.")
    webhook_template = models.TextField(blank=True, help_text="Body, with {{ run.name }} and the like; empty: JSON.")
    webhook_headers = models.JSONField(default=dict, blank=True)
    webhook_secret = models.CharField(max_length=200, blank=True, help_text="Signs the body (HMAC-SHA256).")
    extra = models.JSONField(default=dict, blank=True, help_text="What clients of other dialects keep with a task.")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Hands(models.TextChoices):
    """Which nodes can run a run's items: all that have its type, or only some of them."""

    OUTSIDE = "outside", "clients with code of their own"
    LINE = "line", "nodes with a line to this parent"


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
    fire_time = models.DateTimeField(null=True, help_text="The schedule's time that this run is for.")
    submitted_by = models.CharField(max_length=150, blank=True)
    hands = models.CharField(
        max_length=8, choices=Hands.choices, blank=True, help_text="Which nodes can run it, beside having its type."
    )
    expected = models.PositiveIntegerField(
        null=True, help_text="Items it will have in the end, where the parent adds to them as it goes."
    )
    growing = models.BooleanField(default=False, help_text="The parent may still add items, so it cannot end.")
    reduction = models.JSONField(null=True, help_text="What was computed of its rows when it had ended.")
    idempotency_key = models.CharField(max_length=200, null=True, unique=True)
    fingerprint = models.CharField(
        max_length=64, blank=True, help_text="What the key stood for: sha256 of the submission."
    )

    # Last: SQLite walks over a large blob to reach the columns behind it.
    items = models.BinaryField(help_text="See dispatch.items.")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["state", "-id"]), models.Index(fields=["-ended_at"])]
        constraints = [models.UniqueConstraint(fields=["task", "fire_time"], name="run_once_per_fire_time")]

    def __str__(self) -> str:
        return self.name or gettext("run {n}").format(n=self.pk)

    @property
    def done(self) -> int:
        """Items in an end state."""
        return self.saved + self.failed + self.quarantined + self.cancelled


class Origin(models.Model):
    """The allocation of a parent above that a relay's run is for. ``start`` is the number above of the run's item 0."""

    run = models.OneToOneField(Run, primary_key=True, on_delete=models.CASCADE, related_name="origin")
    parent = models.CharField(max_length=36, help_text="Id of the node above.")
    allocation = models.PositiveBigIntegerField()
    above = models.PositiveBigIntegerField(help_text="Number of the run there.")
    start = models.PositiveIntegerField()
    slots = models.PositiveIntegerField(default=1, help_text="What runs here for it takes no more.")
    memory = models.JSONField(default=dict, help_text="What its items remember, by item key.")
    rate = models.CharField(
        max_length=200, blank=True, help_text="Key of the rate limit above whose tokens it came with: one start each."
    )
    held_at = models.DateTimeField(
        null=True, help_text="Since when nothing of it runs, as the node above is silent for longer than it may go on."
    )
    numbered = models.PositiveIntegerField(default=0, help_text="Parts that were put together.")
    sent_at = models.DateTimeField(null=True)
    closed_at = models.DateTimeField(null=True, help_text="When the parent had all of it, or did not want it any more.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["parent", "allocation"], name="taken_once")]
        indexes = [models.Index(fields=["run"], name="origin_open", condition=models.Q(closed_at=None))]

    def __str__(self) -> str:
        return f"allocation {self.allocation} of {self.parent}"


class ItemsPart(models.Model):
    """Items [start, stop) of a run that were added after its submission; like the others, they never change."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="parts")
    start = models.PositiveIntegerField()
    stop = models.PositiveIntegerField()
    items = models.BinaryField(help_text="See dispatch.items.")

    class Meta:
        ordering = ["run_id", "start"]
        constraints = [models.UniqueConstraint(fields=["run", "start"], name="items_added_once")]

    def __str__(self) -> str:
        return gettext("run {n}").format(n=self.run_id) + f" [{self.start}, {self.stop})"


class SeenItem(models.Model):
    """An item that a growing run has, by the digest of its key: what is found again is not added again."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="seen")
    digest = models.BinaryField(max_length=16)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "digest"], name="item_seen_once")]

    def __str__(self) -> str:
        return f"run {self.run_id} {bytes(self.digest).hex()}"


class ItemMemory(models.Model):
    """What an item of a type remembers from run to run, and how it went the last time: a feed's ETag, say."""

    type = models.CharField(max_length=60)
    key = models.CharField(max_length=200)
    memory = models.JSONField(default=dict, blank=True)
    status = models.CharField(max_length=200, blank=True, help_text="How it went the last time.")
    failed = models.BooleanField(default=False, help_text="The last time it failed; status says why.")
    counts = models.JSONField(default=dict, blank=True)
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="+")
    at = models.DateTimeField(default=timezone.now, help_text="When that was.")
    succeeded_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["type", "key"]
        verbose_name_plural = "item memories"
        constraints = [models.UniqueConstraint(fields=["type", "key"], name="item_memory_once")]

    def __str__(self) -> str:
        return f"{self.type} {self.key}"


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
        return gettext("run {n}").format(n=self.run_id) + f" [{self.start}, {self.stop})"


class Receipt(models.Model):
    """The parent's durable yes to a batch of reports, and where their rows wait until they are saved.

    ``manifest`` lists the accepted entries: {"allocation", "run", "node", "ranges": [[start, stop, rows]…],
    "offset": first row in the segment, "digest": sha256 of the report}. ``payload`` holds inline rows (small
    results ride in this very transaction); larger ones are the spool file named by ``segment``.

    Where it is passed on (``origin``), ``saved_at`` is when the node above had it; a relay that keeps rows (``keep``)
    saves it after that, so that it has exactly what counts above. It is purged when both are done.
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
    origin = models.ForeignKey(
        Origin, null=True, on_delete=models.SET_NULL, related_name="receipts", help_text="It is passed on for this."
    )
    part = models.PositiveIntegerField(null=True, help_text="In which part of the report above.")
    keep = models.BooleanField(default=False, help_text="When it was passed on, its rows are saved here, too.")
    kept_at = models.DateTimeField(null=True, help_text="When they were.")

    class Meta:
        indexes = [
            models.Index(fields=["id"], name="receipt_to_keep", condition=models.Q(keep=True, kept_at=None)),
            models.Index(fields=["id"], name="receipt_spooled", condition=models.Q(saved_at=None)),
            models.Index(
                fields=["id"], name="receipt_unpurged", condition=models.Q(saved_at__isnull=False, purged_at=None)
            ),
        ]

    def __str__(self) -> str:
        return gettext("receipt {n}").format(n=self.pk)


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
    delivered_at = models.DateTimeField(null=True, help_text="When its node fetched or accepted it.")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    seconds = models.FloatField(null=True, help_text="Running time, by the child.")
    progress = models.PositiveIntegerField(default=0, help_text="Items done, by the last beat.")
    slots = models.PositiveIntegerField(default=1, help_text="Of its node; a relay cuts it again for its own nodes.")
    parts = models.PositiveIntegerField(default=0, help_text="Parts of it that were accepted.")
    digests = models.TextField(default="", editable=False, help_text="Of each part, the beginning of what tells it.")
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
        return gettext("allocation {n}").format(n=self.pk)


class RunLog(models.Model):
    """How many lines the logs of a run's shards have. Whoever adds some holds this row, so that numbers grow with the
    commits, and who has read up to a number misses nothing below it."""

    run = models.OneToOneField(Run, primary_key=True, on_delete=models.CASCADE, related_name="+")
    lines = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.lines} lines of run {self.run_id}"


class LogMark(models.Model):
    """How far the log of an allocation that runs has come: characters [start, end) of it are kept."""

    allocation = models.OneToOneField(Allocation, primary_key=True, on_delete=models.CASCADE, related_name="+")
    start = models.PositiveBigIntegerField(default=0)
    end = models.PositiveBigIntegerField(default=0)
    open = models.BooleanField(default=False, help_text="Its last line has no end yet.")

    def __str__(self) -> str:
        return f"log of allocation {self.allocation_id} up to {self.end}"


class LogPiece(models.Model):
    """Lines ``first`` to ``last``, as the run numbers them, of the log of one allocation."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="+", db_index=False)
    allocation = models.ForeignKey(Allocation, on_delete=models.CASCADE, related_name="log_pieces")
    first = models.PositiveBigIntegerField()
    last = models.PositiveBigIntegerField()
    offset = models.PositiveBigIntegerField(help_text="Characters of the allocation's log before it.")
    size = models.PositiveIntegerField(help_text="Characters.")
    missing = models.PositiveBigIntegerField(default=0, help_text="Of these, so many right before it are not kept.")
    continues = models.BooleanField(default=False, help_text="Its first line goes on with the last one before it.")
    at = models.DateTimeField(help_text="When it came.")
    text = models.TextField(null=True, help_text="null: the allocation's own log, which its report brought.")

    class Meta:
        ordering = ["run_id", "first"]
        constraints = [models.UniqueConstraint(fields=["run", "first"], name="log_line_once")]

    def __str__(self) -> str:
        return f"lines {self.first} to {self.last} of run {self.run_id}"


class LeafWork(models.Model):
    """Items [start, stop) of an allocation that a node below a relay ran. Of other nodes their allocations tell it."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="+", db_index=False)
    allocation = models.ForeignKey(Allocation, on_delete=models.CASCADE, related_name="leaves")
    start = models.PositiveIntegerField()
    stop = models.PositiveIntegerField()
    path = models.CharField(max_length=700, help_text="Names from this server's node down: eu/paris/3.")

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["run", "start"], name="leaf_work_of_items")]

    def __str__(self) -> str:
        return f"{self.path}: run {self.run_id} [{self.start}, {self.stop})"


class Above(models.Model):
    """What the node above has told this server, a relay, last. One row: for its other processes, and its next start."""

    path = models.JSONField(default=list, help_text="[id, name] of each node from the root to the parent.")
    capacity = models.PositiveIntegerField(help_text="Slots that this subtree may take.")
    limits = models.JSONField(default=dict, help_text="Of these, by type.")
    told_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "above"

    def __str__(self) -> str:
        return " > ".join(name for _, name in self.path)


class Question(models.Model):
    """What a relay below is asked: its nodes in full, or those of the relay at ``path`` below it. Gone in seconds."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="questions")
    path = models.JSONField(default=list)
    within = models.FloatField(help_text="Seconds that the answer is waited for.")
    asked_at = models.DateTimeField(default=timezone.now)
    sent_at = models.DateTimeField(null=True)
    answered_at = models.DateTimeField(null=True)
    status = models.PositiveSmallIntegerField(null=True, help_text="As of an HTTP answer.")
    body = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"question {self.pk} to {self.node_id}"


class StagedRow(models.Model):
    """A row that a child uploaded ahead of its report, once per ``key`` within the allocation."""

    allocation = models.ForeignKey(Allocation, on_delete=models.CASCADE, related_name="staged")
    item = models.CharField(max_length=200, help_text="Key of the item it belongs to.")
    key = models.CharField(max_length=300)
    row = models.JSONField()

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["allocation", "key"], name="staged_once")]

    def __str__(self) -> str:
        return f"{self.key} of allocation {self.allocation_id}"


class Source(models.Model):
    """Something that recurring work goes through: a feed, a symbol, an address. Tasks name them by kind."""

    class Kind(models.TextChoices):
        FEED = "feed"
        SYMBOL = "symbol"
        URL = "url"

    kind = models.CharField(max_length=10, choices=Kind.choices)
    key = models.CharField(max_length=200, help_text="What items, quotas and results call it.")
    name = models.CharField(max_length=200, blank=True)
    address = models.CharField(max_length=2000, blank=True)
    active = models.BooleanField(default=True)
    extra = models.JSONField(default=dict, blank=True, help_text="Further facts, as they were imported.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["kind", "key"]
        constraints = [models.UniqueConstraint(fields=["kind", "key"], name="source_once")]

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class RateLimit(models.Model):
    """How fast items of one key may be given out, over all nodes together."""

    key = models.CharField(max_length=200, unique=True, help_text="As runs name it, or with * for many: host:*")
    per_second = models.FloatField(
        validators=[MinValueValidator(0.001), MaxValueValidator(100_000)], help_text="Items a second."
    )
    burst = models.PositiveIntegerField(
        default=1, validators=[MinValueValidator(1)], help_text="Items at once after a pause."
    )

    class Meta:
        ordering = ["key"]

    def __str__(self) -> str:
        return f"{self.key}: {self.per_second:g} a second"


class RateBucket(models.Model):
    """What is left of a rate: ``tokens`` as of ``filled_at``. Changed in the transaction that grants."""

    key = models.CharField(max_length=200, unique=True)
    tokens = models.FloatField()
    filled_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.key


class RateLease(models.Model):
    """Tokens of a rate that a relay was given with an allocation and has not used yet: until its lease ends they may be
    used at any moment, so that its bucket has no room for others in their place.
    """

    allocation = models.OneToOneField(Allocation, primary_key=True, on_delete=models.CASCADE, related_name="rate_lease")
    key = models.CharField(max_length=200, db_index=True)
    tokens = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.tokens} of {self.key} with allocation {self.allocation_id}"


class TypeSettings(models.Model):
    """Parameters that runs of a type have unless they say otherwise; children get them with the configuration."""

    type = models.CharField(max_length=60, unique=True)
    params = models.JSONField(default=dict, blank=True)

    class Meta:
        verbose_name_plural = "type settings"

    def __str__(self) -> str:
        return self.type


class ConfigVersion(models.Model):
    """What children are to have: tasks, sources and type settings, as of one moment. The newest row is in force, unless
    a ``ConfigRelease`` says otherwise.
    """

    digest = models.CharField(max_length=64)
    content = models.JSONField()
    above = models.PositiveBigIntegerField(
        null=True, help_text="Of a relay: the number of the version of the node above that is in it."
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return gettext("version {n}").format(n=self.pk)


class ConfigRelease(models.Model):
    """While its one row is there, nodes have the version ``released``, and those of ``canary`` the newest."""

    released = models.ForeignKey(ConfigVersion, on_delete=models.PROTECT, related_name="+")
    canary = models.JSONField(default=list, help_text="Ids of nodes.")
    changed_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"version {self.released_id}"


class Delivery(models.Model):
    """A webhook's call about one ended run, until it is answered or given up."""

    class State(models.TextChoices):
        WAITING = "waiting"
        DELIVERED = "delivered"
        FAILED = "failed"

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="deliveries")
    url = models.CharField(max_length=500)
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=timezone.now, db_index=True)
    status = models.PositiveSmallIntegerField(null=True, help_text="Of the last answer.")
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        constraints = [models.UniqueConstraint(fields=["run", "url"], name="delivery_once")]

    def __str__(self) -> str:
        return f"run {self.run_id} to {self.url}"


class SyncLog(models.Model):
    """One exchange worth keeping between this parent and a node. Of many alike within a second there is one row."""

    class Direction(models.TextChoices):
        PULL = "pull"
        PUSH = "push"

    class Status(models.IntegerChoices):
        RUNNING = 0
        OK = 1
        FAILED = 2

    node = models.ForeignKey(Node, null=True, on_delete=models.CASCADE, related_name="sync_logs")
    operation = models.CharField(max_length=40, help_text="dispatch, claim, report, release, config, knock, webhook …")
    direction = models.CharField(max_length=4, choices=Direction.choices)
    status = models.PositiveSmallIntegerField(choices=Status.choices, default=Status.OK)
    count = models.PositiveIntegerField(default=0, help_text="Allocations, rows or entries that it moved.")
    error = models.TextField(blank=True)
    extra = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["node", "-id"]), models.Index(fields=["started_at"])]

    def __str__(self) -> str:
        return f"{self.operation} {self.pk}"


class Switch(models.Model):
    """Something an operator turns on and off for all processes of this parent: the scheduler."""

    name = models.CharField(max_length=40, unique=True)
    on = models.BooleanField(default=True)
    changed_at = models.DateTimeField(auto_now=True)
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        verbose_name_plural = "switches"

    def __str__(self) -> str:
        return f"{self.name}: {'on' if self.on else 'off'}"
