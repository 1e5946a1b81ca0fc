"""The dialect ``cascade``: feeds, message tasks and articles, for children that poll with AK/SK and for operators.

Routes only. What operators send is read in ``cascade_operator``, what children send in ``cascade_child``; the words and
shapes of the answers are in ``cascade_shapes``.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt

from api.dialects import cascade_child as child
from api.dialects import cascade_operator as operator
from api.dialects.cascade_shapes import refused
from api.dialects.common import methods, route
from nodes.protocol import NotFound


@csrf_exempt
def unknown(request: HttpRequest) -> HttpResponse:
    return refused(NotFound(f"{request.path} does not exist"))


urlpatterns = [
    route("nodes", methods(refused, get=operator.nodes, post=operator.add_node), "cascade-nodes"),
    route(
        "nodes/<id>",
        methods(refused, get=operator.node, put=operator.change_node, delete=operator.remove_node),
        "cascade-node",
    ),
    route("nodes/<id>/credentials", methods(refused, post=operator.credentials), "cascade-credentials"),
    route("nodes/<id>/test-connection", methods(refused, post=operator.test_connection), "cascade-test-connection"),
    route("dispatch-task", methods(refused, post=operator.dispatch_task), "cascade-dispatch-task"),
    route("allocations", methods(refused, get=operator.allocations), "cascade-allocations"),
    route("sync-logs", methods(refused, get=operator.sync_logs), "cascade-sync-logs"),
    route("feed-status", methods(refused, get=operator.feed_status), "cascade-feed-status"),
    route("start-scheduler", methods(refused, post=operator.start_scheduler), "cascade-start-scheduler"),
    route("stop-scheduler", methods(refused, post=operator.stop_scheduler), "cascade-stop-scheduler"),
    route("reload-scheduler", methods(refused, post=operator.reload_scheduler), "cascade-reload-scheduler"),
    route("heartbeat", methods(refused, post=child.heartbeat), "cascade-heartbeat"),
    route("feeds", methods(refused, get=child.feeds), "cascade-feeds"),
    route("message-tasks", methods(refused, get=child.message_tasks), "cascade-message-tasks"),
    route("pending-tasks", methods(refused, get=child.pending_tasks), "cascade-pending-tasks"),
    route("claim-task", methods(refused, post=child.claim_task), "cascade-claim-task"),
    route("task-status", methods(refused, put=child.task_status), "cascade-task-status"),
    route("upload-articles", methods(refused, post=child.upload_articles), "cascade-upload-articles"),
    route("report-completion", methods(refused, post=child.report_completion), "cascade-report-completion"),
    route("report-result", methods(refused, post=child.report_result), "cascade-report-result"),
    re_path("", unknown),
]
