"""Everything below /api/. Addresses have no trailing slash."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from rest_framework.routers import SimpleRouter

from api import (
    below,
    views,
    views_charts,
    views_configuration,
    views_docs,
    views_explain,
    views_logs,
    views_nodes,
    views_rates,
    views_runs,
    views_schedule,
    views_sources,
    views_sql,
    views_sync,
    views_tables,
    views_types,
)
from api.errors import handler404

router = SimpleRouter(trailing_slash=False)
router.register("tasks", views_runs.Tasks, "task")
router.register("runs", views_runs.Runs, "run")
router.register("shards", views_runs.Shards, "shard")
router.register("allocations", views_runs.Allocations, "allocation")
router.register("deliveries", views_schedule.Deliveries, "delivery")
router.register("nodes", views_nodes.Nodes, "node")
router.register("quotas", views_nodes.Quotas, "quota")
router.register("rates", views_rates.Rates, "rate")
router.register("sources", views_sources.Sources, "source")
router.register("sync-logs", views_sync.SyncLogs, "sync-log")
router.register("journal", views_sync.Journal, "journal")


@csrf_exempt
def unknown(request: HttpRequest) -> HttpResponse:
    """JSON also where Django would show its own page about an unknown address (DEBUG)."""
    return handler404(request, Exception())


urlpatterns = [
    path("v1/agent/", include("api.agent")),
    path("v1/token", views.SignIn.as_view(), name="token"),
    path("v1/token/refresh", views.Refresh.as_view(), name="token-refresh"),
    path("v1/nodes/<int:pk>/below", below.children, name="node-below"),
    re_path(r"^v1/runs/(?P<pk>[0-9]{1,18})/logs$", views_logs.RunLogs.as_view(), name="run-logs"),
    path("v1/", include(router.urls)),
    path("v1/keys/<str:access_key>", views_nodes.Key.as_view(), name="key"),
    path("v1/scheduler", views_schedule.Scheduler.as_view(), name="scheduler"),
    path("v1/scheduler/start", views_schedule.SchedulerStart.as_view(), name="scheduler-start"),
    path("v1/scheduler/stop", views_schedule.SchedulerStop.as_view(), name="scheduler-stop"),
    path("v1/scheduler/reload", views_schedule.SchedulerReload.as_view(), name="scheduler-reload"),
    path("v1/configuration", views_configuration.Configuration.as_view(), name="configuration"),
    path("v1/configuration/canary", views_configuration.ConfigurationCanary.as_view(), name="configuration-canary"),
    path("v1/configuration/promote", views_configuration.ConfigurationPromote.as_view(), name="configuration-promote"),
    path(
        "v1/configuration/rollback", views_configuration.ConfigurationRollback.as_view(), name="configuration-rollback"
    ),
    path("v1/executors", views_types.Executors.as_view(), name="executors"),
    path("v1/executors/<str:task_type>/schema", views_types.TypeSchema.as_view(), name="type-schema"),
    path("v1/executors/<str:task_type>/settings", views_sources.Settings.as_view(), name="type-settings"),
    path("v1/what-if", views_explain.WhatIf.as_view(), name="what-if"),
    path("v1/balancers", views_rates.Balancers.as_view(), name="balancers"),
    path("v1/providers", views_types.Providers.as_view(), name="providers"),
    path("v1/charts/candles", views_charts.CandleChart.as_view(), name="chart-candles"),
    path("v1/charts/backtest", views_charts.BacktestCurve.as_view(), name="chart-backtest"),
    path("v1/charts/optimization", views_charts.OptimizationTrials.as_view(), name="chart-optimization"),
    path("v1/articles", views_charts.ArticleList.as_view(), name="articles"),
    path("v1/articles/text", views_charts.ArticleText.as_view(), name="article-text"),
    path("v1/sql", views_sql.Sql.as_view(), name="sql"),
    path("v1/sql/tables", views_sql.SqlTables.as_view(), name="sql-tables"),
    path("v1/tables", views_tables.Tables.as_view(), name="tables"),
    path("v1/tables/<str:name>", views_tables.TableAbout.as_view(), name="table"),
    path("v1/tables/<str:name>/page", views_tables.PageOfRows.as_view(), name="table-page"),
    path("v1/tables/<str:name>/facets", views_tables.Facets.as_view(), name="table-facets"),
    path("v1/tables/<str:name>/rows", views_tables.Rows.as_view(), name="table-rows"),
    path("v1/cascade/", include("api.dialects.cascade")),
    path("v1/wx/cascade/", include("api.dialects.cascade")),
    re_path(r"^v1/", unknown),
    re_path(r"^distribution(?:/|$)", include("api.dialects.distribution")),
    path("schema", views_docs.Schema.as_view(), name="schema"),
    path("docs", views_docs.Docs.as_view(), name="docs"),
]
