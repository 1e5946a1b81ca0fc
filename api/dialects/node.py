"""What a child serves at its own address: who it is and how it is. Answers from what the agent knows; never blocks."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path

from nodes import executors
from nodes.agent import hosted


def root(request: HttpRequest) -> JsonResponse:
    agent = hosted.agent
    name = agent.node if agent else ""
    return JsonResponse({"service": "cascade", "node_name": name, "status": "running" if agent else "starting"})


def health(request: HttpRequest) -> JsonResponse:
    """200 with ``healthy``, ``busy`` (all slots taken) or ``starting`` (not yet known to its parent)."""
    agent = hosted.agent
    if agent is None or not agent.node:
        return JsonResponse({"status": "starting"}, status=503)
    active = agent.active
    return JsonResponse(
        {
            "node_name": agent.node,
            "status": "busy" if active >= agent.capacity else "healthy",
            "active_tasks": active,
            "capacity": agent.capacity,
            "capabilities": executors.names(),
        }
    )


urlpatterns = [path("", root), path("healthz", health), path("api/v1/health", health)]
