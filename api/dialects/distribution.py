"""The dialect ``distribution``: crawler devices that register with a master. Its addresses, below /api/distribution/.

``distribution_words`` has the tables of its words, ``distribution_keys`` who is calling; devices, tasks, figures and
what operators do are a file each. Errors are ``{"detail"}``.
"""

from __future__ import annotations

from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt

from api.dialects import distribution_devices as devices
from api.dialects import distribution_management as management
from api.dialects import distribution_reports as reports
from api.dialects import distribution_tasks as tasks
from api.dialects.common import View, methods, route
from api.dialects.distribution_words import unknown, wrong


def _at(path: str, name: str, **views: View) -> URLPattern:
    return route(path, methods(wrong, **views), f"distribution-{name}")


urlpatterns = [
    _at("devices/register", "register", post=devices.register),
    _at("devices", "devices", get=devices.listed),
    _at("devices/<device_id>", "device", get=devices.one),
    _at("devices/<device_id>/heartbeat", "heartbeat", post=devices.heartbeat),
    _at("devices/<device_id>/status", "device-status", put=devices.status),
    _at("devices/<device_id>/stats", "device-stats", get=devices.stats),
    _at("tasks", "tasks", get=tasks.listed, post=tasks.create),
    # Before tasks/<task_id>: these are no ids.
    _at("tasks/assign", "assign", post=tasks.assign),
    _at("tasks/status", "task-status", put=reports.status),
    _at("tasks/pull", "pull", get=tasks.pull),
    _at("tasks/stats", "task-stats", get=tasks.stats),
    _at("tasks/<task_id>", "task", get=tasks.one),
    _at("tasks/<task_id>/assign", "assign-task", put=tasks.assign),
    _at("tasks/<task_id>/status", "status-of-task", put=reports.status),
    _at("tasks/<device_id>/pull", "pull-of-device", get=tasks.pull),
    _at("stats/overview", "overview", get=management.overview),
    _at("system/overview", "system-overview", get=management.overview),
    _at("stats/devices", "stats-devices", get=management.devices),
    _at("stats/performance/<device_id>", "performance", get=management.performance),
    _at("stats/devices/<device_id>/performance", "device-performance", get=management.performance),
    _at("management/rebalance", "rebalance", post=management.rebalance),
    _at("management/cleanup", "cleanup", post=management.cleanup),
    _at("management/scheduler/status", "scheduler", get=management.scheduler),
    re_path(r"", csrf_exempt(unknown)),
]
