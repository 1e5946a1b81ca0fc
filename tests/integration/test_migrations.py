"""A database of the first release, with work in every state, comes forward to now and goes on."""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps.registry import Apps
from django.contrib.auth.models import User
from django.db import connection, models
from django.db.migrations.executor import MigrationExecutor
from django.test import Client
from django.utils import timezone

from dispatch.items import freeze
from dispatch.models import Allocation, Run
from nodes import signing
from nodes.keys import Caller
from nodes.models import AccessKey, Node, Quota
from nodes.protocol import Unauthenticated
from tests.integration import factory
from tests.integration.factory import Child, Work, assert_partition, done

OURS = ("nodes", "dispatch")
FIRST = [(app, "0001_initial") for app in OURS]


@pytest.fixture
def executor(transactional_db: None) -> Iterator[MigrationExecutor]:
    """The test's database as the first release had it. Whatever happens, it is today's afterwards."""
    _drop_tables()
    try:
        made = MigrationExecutor(connection)
        others = [node for node in made.loader.graph.leaf_nodes() if node[0] not in OURS]
        made.migrate([*FIRST, *others])
        yield made
    finally:
        if MigrationExecutor(connection).migration_plan(leaves()):
            _drop_tables()
            MigrationExecutor(connection).migrate(leaves())


def leaves() -> list[tuple[str, str]]:
    return MigrationExecutor(connection).loader.graph.leaf_nodes()


def _drop_tables() -> None:
    with connection.schema_editor() as editor:
        for table in connection.introspection.table_names():
            suffix = " CASCADE" if connection.vendor == "postgresql" else ""
            editor.execute(f"DROP TABLE {connection.ops.quote_name(table)}{suffix}")


def as_of(executor: MigrationExecutor, at: list[tuple[str, str]]) -> Any:
    """The models of that moment."""
    apps: Apps = executor.loader.project_state(at).apps
    return apps


# What the first release left behind


def fill(apps: Apps) -> None:
    """Work in all states, written by the models of the first release."""
    now = timezone.now()
    node_of, key_of, quota_of = (apps.get_model("nodes", name) for name in ("Node", "AccessKey", "Quota"))
    run_of, shard_of = apps.get_model("dispatch", "Run"), apps.get_model("dispatch", "Shard")
    allocation_of, receipt_of = apps.get_model("dispatch", "Allocation"), apps.get_model("dispatch", "Receipt")
    node = node_of.objects.create(name="old", capacity=4, executors=["echo"], last_beat_at=now, speeds={"echo": 6.0})
    for access_key, revoked_at in (("AKLIVE", None), ("AKREVOKED", now)):
        key_of.objects.create(node=node, access_key=access_key, public_key=signing.new_key()[2], revoked_at=revoked_at)
    quota_of.objects.create(node=node, task_type="echo", slots=1, limit=3)
    apps.get_model("nodes", "Heartbeat").objects.create(node=node, cpu=12.5)
    apps.get_model("nodes", "Nonce").objects.create(value="AKLIVE:one", expires_at=now)
    task = apps.get_model("dispatch", "Task").objects.create(name="nightly", type="echo", items=["a"])
    run = run_of.objects.create(
        type="echo", name="under way", task=task, count=7, cut=5, saved=1, failed=1, quarantined=0, rows=1,
        shard_size=1, backoff=0.0, items=freeze([f"i{number}" for number in range(7)]), idempotency_key="k",
    )  # fmt: skip

    def part(of: Any, start: int, state: str, allocation: str, **more: Any) -> tuple[Any, Any]:
        shard = shard_of.objects.create(run=of, start=start, stop=start + 1, state=state)
        about = {"type": "echo", "start": start, "stop": start + 1, "reason": "free capacity", "delivered": True}
        deadline = now + dt.timedelta(hours=1)
        return shard, allocation_of.objects.create(
            run=of, shard=shard, node=node, state=allocation, deadline=deadline, **{**about, **more}
        )

    def receipt(shard: Any, allocation: Any, **more: Any) -> None:
        start = shard.start
        manifest = [
            {"allocation": allocation.pk, "run": shard.run_id, "start": start, "node": "old", "offset": 0,
             "digest": "d" * 64, "ranges": [[start, start + 1, 1, shard.pk]]}
        ]  # fmt: skip
        payload = zlib.compress(json.dumps([[f"i{start}", 0, f"i{start}:0"]]).encode())
        told = {"node": node, "type": "echo", "manifest": manifest, "rows": 1, "payload": payload}
        made = receipt_of.objects.create(**{**told, **more})
        allocation_of.objects.filter(pk=allocation.pk).update(receipt=made)

    receipt(*part(run, 0, "saved", "completed"), saved_at=now, purged_at=now, payload=None)
    receipt(*part(run, 1, "spooled", "completed"))
    part(run, 2, "executing", "executing", started_at=now)
    part(run, 3, "pending", "expired")
    part(run, 4, "failed", "failed")
    ended = run_of.objects.create(
        type="echo", name="over", state="completed", count=1, cut=1, saved=1, rows=1, ended_at=now, items=freeze(["z"])
    )
    receipt(*part(ended, 0, "saved", "completed"), saved_at=now, purged_at=now, payload=None)


def fill_what_is_empty(apps: Apps) -> None:
    """One row in each of our tables that has none, so that the next migration finds something everywhere."""
    for app in OURS:
        for model in apps.get_app_config(app).get_models():
            if not model._default_manager.exists():
                given = {field.name: _some(field) for field in model._meta.concrete_fields if _needed(field)}
                model._default_manager.create(**given)


def _needed(field: models.Field) -> bool:
    return not ((field.primary_key and isinstance(field, models.AutoField)) or field.has_default() or field.null)


def _some(field: models.Field) -> Any:
    if isinstance(field, models.ForeignKey):
        return field.related_model._default_manager.order_by("-pk").first()
    if isinstance(field, models.DateTimeField):
        return timezone.now()
    if isinstance(field, models.BinaryField):
        return b"\0" * 16
    if isinstance(field, models.JSONField):
        return {}
    return 1 if isinstance(field, (models.IntegerField, models.FloatField)) else "some"


def counts(apps: Apps) -> dict[str, int]:
    ours = [model for app in OURS for model in apps.get_app_config(app).get_models()]
    return {model._meta.db_table: model._default_manager.count() for model in ours}


# The tests


def test_each_migration_keeps_the_rows_of_the_one_before(executor: MigrationExecutor) -> None:
    at = list(FIRST)
    fill(as_of(executor, at))
    steps = [(each.app_label, each.name) for each, _ in executor.migration_plan(leaves())]
    assert steps, "there is nothing after the first release"
    for step in steps:
        fill_what_is_empty(as_of(executor, at))
        before = counts(as_of(executor, at))
        MigrationExecutor(connection).migrate([step])
        at = [each for each in at if each[0] != step[0]] + [step]
        after = counts(as_of(executor, at))
        assert {table: after.get(table) for table in before} == before, step
    assert Run.objects.get(name="under way").count == 7


def test_work_of_the_first_release_goes_on_after_the_migrations(
    executor: MigrationExecutor, client: Client, settings: Any, tmp_path: Any
) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"data_dir": tmp_path, "result_store": "file"})
    fill(as_of(executor, FIRST))
    MigrationExecutor(connection).migrate(leaves())

    node, run = Node.objects.get(), Run.objects.get(name="under way")
    assert (node.patient, node.labels, Quota.objects.get().limit) == (False, {}, 3)
    assert (run.fallback, run.growing, run.rate_key, run.task and run.task.name) == ("allowed", False, "", "nightly")
    live, revoked = (AccessKey.objects.get(access_key=name).pk for name in ("AKLIVE", "AKREVOKED"))
    old = Child(node.pk, Caller(node.pk, live, "AKLIVE"))
    with pytest.raises(Unauthenticated):
        Child(node.pk, Caller(node.pk, revoked, "AKREVOKED")).beat()

    executing = Allocation.objects.get(state="executing")
    expired = Allocation.objects.get(state="expired")
    old.beat(held=[executing.pk], running=[executing.pk])
    report = {
        each.pk: done(Work(each.pk, run.pk, each.start, each.stop, 1, [f"i{each.start}"]))
        for each in (executing, expired)
    }
    assert old.statuses(report[expired.pk]) == [409]
    assert old.statuses(report[executing.pk], report[expired.pk]) == [200, 409]
    while work := old.works():
        old.report(*map(done, work))
    with factory.saver() as saver:
        factory.save(saver)
        # Those of items 0 and 4 are the first release's own: saved before, failed before.
        assert factory.stored(saver).items == {f"i{number}": 1 for number in (1, 2, 3, 5, 6)}
    assert_partition(run)
    assert factory.state(run) == "partial"

    user = User.objects.create_user("anna", password="a long pass phrase", is_staff=True, is_superuser=True)
    client.force_login(user)
    listed = client.get("/api/v1/runs").json()
    assert {each["name"] for each in listed["results"]} == {"under way", "over"}
    for page in ("/", f"/api/v1/runs/{run.pk}", "/admin/dispatch/run/", "/admin/nodes/node/", "/admin/dispatch/task/"):
        assert client.get(page).status_code == 200, page
