"""Whether the database is as this version wants it. Imports no model, so that a child's process may import it."""

from __future__ import annotations

from django.db import connection
from django.db.migrations.executor import MigrationExecutor


def behind() -> bool:
    """Whether the database lacks migrations of this version."""
    plan = MigrationExecutor(connection)
    return bool(plan.migration_plan(plan.loader.graph.leaf_nodes()))
