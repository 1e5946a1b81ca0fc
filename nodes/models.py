"""Node, Quota, AccessKey, RegistrationKey, Heartbeat, Nonce: who does the work. Changed through ``registry``, ``keys``
and ``registrations`` only.
"""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from nodes.protocol import NotFound

name_validator = RegexValidator(
    r"\A[^\W_](?:[\w .:@-]{0,98}[\w])?\Z",
    "A name has 1 to 100 letters, digits, spaces or . : @ _ - and starts with a letter or digit.",
)


class Node(models.Model):
    """A running instance that takes work from this parent."""

    class Role(models.TextChoices):
        CHILD = "child"
        RELAY = "relay"
        PARENT = "parent"
        STANDALONE = "standalone"

    class Carrier(models.TextChoices):
        PULL = "pull"
        PUSH = "push"
        HTTP = "http"

    class Dialect(models.TextChoices):
        NATIVE = "native"
        CASCADE = "cascade"
        NODE = "node"
        DISTRIBUTION = "distribution"

    PATIENT = (Dialect.CASCADE, Dialect.DISTRIBUTION)

    name = models.CharField(max_length=100, unique=True, validators=[name_validator])
    description = models.CharField(max_length=500, blank=True)
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.CHILD)
    carrier = models.CharField(
        max_length=4, choices=Carrier.choices, default=Carrier.PULL, help_text="How work reaches it; the agent says."
    )
    api_url = models.CharField(max_length=500, blank=True, help_text="Where the parent reaches it, if it does.")
    capacity = models.PositiveIntegerField(
        default=4,
        validators=[MinValueValidator(1), MaxValueValidator(10_000)],
        help_text="Slots: shards running at once.",
    )
    weight = models.FloatField(
        default=1.0, validators=[MinValueValidator(0.01), MaxValueValidator(1000)], help_text="For balancer 'weighted'."
    )
    labels = models.JSONField(default=dict, blank=True, help_text='An object of texts, like {"region": "eu"}.')
    active = models.BooleanField(default=True, help_text="Off: may not authenticate, gets no work.")
    draining = models.BooleanField(default=False, help_text="On: finishes what it has, gets no new work.")
    max_cpu = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Percent; above it no new work. Empty: the server's setting.",
    )
    max_memory = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Percent; above it no new work. Empty: the server's setting.",
    )
    dialect = models.CharField(
        max_length=12,
        choices=Dialect.choices,
        default=Dialect.NATIVE,
        help_text="What its client speaks. Clients of the others poll rarely: their offers and leases last longer.",
    )
    api_key = models.CharField(
        max_length=200,
        blank=True,
        help_text="What the parent sends as X-API-Key where it calls the node (carrier http).",
    )
    facts = models.JSONField(default=dict, blank=True, help_text="What its client said of itself at registration.")
    registration = models.ForeignKey(
        "RegistrationKey", null=True, blank=True, editable=False, on_delete=models.PROTECT, related_name="nodes"
    )
    allow_plain_key = models.BooleanField(
        default=True, help_text="Accept 'Authorization: AK-SK ak:sk' beside signed requests."
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    # What the agent says of itself with each beat.
    version = models.CharField(max_length=40, blank=True, editable=False)
    executors = models.JSONField(default=list, blank=True, editable=False)
    boot = models.CharField(max_length=64, blank=True, editable=False)
    last_beat_at = models.DateTimeField(null=True, editable=False, db_index=True)
    cpu = models.FloatField(null=True, editable=False, help_text="Percent.")
    memory = models.FloatField(null=True, editable=False, help_text="Percent.")
    disk = models.FloatField(null=True, editable=False, help_text="Percent.")
    config_version = models.PositiveBigIntegerField(null=True, editable=False, help_text="The one it works with.")
    synced_at = models.DateTimeField(null=True, editable=False, help_text="When it got that.")
    losses = models.PositiveIntegerField(default=0, editable=False, help_text="Times it lost its work, in a row.")
    lost_at = models.DateTimeField(null=True, editable=False, help_text="The last of these times.")
    subtree = models.JSONField(null=True, editable=False, help_text="Of a relay: what hangs below it, in short.")
    subtree_at = models.DateTimeField(null=True, editable=False, help_text="When it said that.")
    # Measured by the parent from reports: task type -> seconds per item, moving average.
    speeds = models.JSONField(default=dict, blank=True, editable=False)
    # Grows with every grant to any node: who has waited longest, for balancer 'round_robin'.
    last_grant = models.BigIntegerField(default=0, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def embedded(self) -> bool:
        """The parent's own worker, inside its process."""
        return self.role == Node.Role.STANDALONE

    @property
    def patient(self) -> bool:
        """Its client polls rarely and is silent while it works."""
        return self.dialect in Node.PATIENT

    @classmethod
    def locked(cls, node_id: int) -> Node:
        """Nobody else changes it before the transaction, which must be open, ends. Raises NotFound."""
        try:
            return cls.objects.select_for_update().get(pk=node_id)
        except cls.DoesNotExist:
            raise NotFound(f"there is no node {node_id}") from None

    def clean(self) -> None:
        if not isinstance(self.labels, dict) or not all(isinstance(value, str) for value in self.labels.values()):
            raise ValidationError({"labels": f"{self.labels!r} is not an object of texts."})


class Quota(models.Model):
    """Slots of one task type that its node is given first; with ``item``, of one item of that type."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="quotas")
    task_type = models.CharField(max_length=60)
    item = models.CharField(max_length=200, blank=True, help_text="Empty: the whole type.")
    slots = models.PositiveIntegerField(help_text="Given first to this node, up to so many at once.")
    limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="Never more than this at once; 0 means never here. Empty: no limit."
    )

    class Meta:
        ordering = ["task_type", "item"]
        constraints = [models.UniqueConstraint(fields=["node", "task_type", "item"], name="quota_once")]

    def __str__(self) -> str:
        item = f"[{self.item}]" if self.item else ""
        limit = f" (limit {self.limit})" if self.limit is not None else ""
        return f"{self.task_type}{item}={self.slots}{limit}"

    def clean(self) -> None:
        # Half-filled forms reach clean() with missing parts; their own fields already say so.
        if self.slots is None or self.node_id is None:
            return
        if self.slots > self.node.capacity:
            raise ValidationError({"slots": f"{self.slots} is above the node's capacity, {self.node.capacity}."})
        if self.limit is not None and self.slots > self.limit:
            raise ValidationError({"slots": f"{self.slots} is above this quota's own limit, {self.limit}."})


class AccessKey(models.Model):
    """One key of a node. The secret is an Ed25519 seed that only the child holds."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="keys")
    access_key = models.CharField(max_length=40, unique=True)
    public_key = models.CharField(max_length=64, help_text="Ed25519, 32 bytes in hex.")
    created_at = models.DateTimeField(default=timezone.now)
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return self.access_key


class RegistrationKey(models.Model):
    """A bearer key with which devices register themselves; each is bound to the key it came with."""

    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12, help_text="Its first characters, to tell keys apart.")
    digest = models.CharField(max_length=64, unique=True, help_text="sha256 of the key, which is shown once.")
    many = models.BooleanField(default=False, help_text="On: it registers any number of devices; off: one.")
    created_at = models.DateTimeField(default=timezone.now)
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class Heartbeat(models.Model):
    """One beat, kept for ``heartbeat_days``."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="heartbeats")
    at = models.DateTimeField(default=timezone.now)
    cpu = models.FloatField(null=True)
    memory = models.FloatField(null=True)
    disk = models.FloatField(null=True)
    held = models.PositiveIntegerField(default=0, help_text="Allocations it holds.")
    running = models.PositiveIntegerField(default=0, help_text="Slots in use.")

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["node", "-at"]), models.Index(fields=["at"])]

    def __str__(self) -> str:
        return f"{self.node_id} at {self.at:%Y-%m-%d %H:%M:%S}"


class Nonce(models.Model):
    """A nonce already seen, so that no signed request is accepted twice, by any process of this parent."""

    value = models.CharField(max_length=110, primary_key=True, help_text="access key:nonce")
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.value


class JournalEntry(models.Model):
    """Something that happened, for people: of many alike within a second there is one row. ``nodes.journal`` writes it.

    Ids and names as they were then, so that it outlives what it is about.
    """

    class About(models.TextChoices):
        NODE = "node", "nodes"
        RUN = "run", "runs"
        WORK = "work", "allocations"
        KEY = "key", "keys"
        CONFIGURATION = "configuration", "configuration"

    at = models.DateTimeField(default=timezone.now, db_index=True)
    about = models.CharField(max_length=13, choices=About.choices)
    word = models.CharField(max_length=12, help_text="What happened: offline, completed, expired …")
    node = models.PositiveBigIntegerField(null=True)
    name = models.CharField(max_length=100, blank=True, help_text="Of the node.")
    run = models.PositiveBigIntegerField(null=True)
    count = models.PositiveIntegerField(default=1, help_text="Allocations, items or nodes.")
    text = models.TextField(blank=True, help_text="The error, the key, the names.")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["about", "-id"])]
        verbose_name_plural = "journal"

    def __str__(self) -> str:
        return f"{self.about} {self.word} {self.pk}"
