"""Everything below /api/. Addresses have no trailing slash."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from rest_framework.routers import SimpleRouter

from api import views, views_docs, views_nodes, views_runs, views_tables
from api.errors import handler404

router = SimpleRouter(trailing_slash=False)
router.register("tasks", views_runs.Tasks, "task")
router.register("runs", views_runs.Runs, "run")
router.register("shards", views_runs.Shards, "shard")
router.register("allocations", views_runs.Allocations, "allocation")
router.register("nodes", views_nodes.Nodes, "node")
router.register("quotas", views_nodes.Quotas, "quota")


@csrf_exempt
def unknown(request: HttpRequest) -> HttpResponse:
    """JSON also where Django would show its own page about an unknown address (DEBUG)."""
    return handler404(request, Exception())


urlpatterns = [
    path("v1/agent/", include("api.agent")),
    path("v1/token", views.SignIn.as_view(), name="token"),
    path("v1/token/refresh", views.Refresh.as_view(), name="token-refresh"),
    path("v1/", include(router.urls)),
    path("v1/keys/<str:access_key>", views_nodes.Key.as_view(), name="key"),
    path("v1/executors", views.Executors.as_view(), name="executors"),
    path("v1/providers", views.Providers.as_view(), name="providers"),
    path("v1/tables", views_tables.Tables.as_view(), name="tables"),
    path("v1/tables/<str:name>/rows", views_tables.Rows.as_view(), name="table-rows"),
    re_path(r"^v1/", unknown),
    path("schema", views_docs.Schema.as_view(), name="schema"),
    path("docs", views_docs.Docs.as_view(), name="docs"),
]
