"""Sources and type settings in the admin; configurations and the sync log to look at."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dispatch import configuration, sources, synclog, type_settings
from dispatch.models import Source, SyncLog, TypeSettings

pytestmark = pytest.mark.django_db

PAPER = {
    "kind": "feed",
    "key": "paper",
    "name": "",
    "address": "https://paper.example/rss",
    "active": "on",
    "extra": "",
}


def test_a_source_is_added_and_an_emptied_box_is_an_empty_object(admin_client: Client) -> None:
    assert admin_client.post("/admin/dispatch/source/add/", PAPER).status_code == 302
    assert Source.objects.get().extra == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [({"address": "nonsense"}, "address"), ({"key": "a\u202eb"}, "key"), ({"extra": "[1]"}, "extra")],
)
def test_what_an_import_would_refuse_is_said_at_the_field(
    admin_client: Client, change: dict[str, Any], field: str
) -> None:
    answer: Any = admin_client.post("/admin/dispatch/source/add/", PAPER | change)
    assert answer.status_code == 200
    assert field in answer.context["adminform"].form.errors
    assert not Source.objects.exists()


def test_sources_are_disabled_and_enabled_together(admin_client: Client) -> None:
    sources.import_rows([{"key": "a"}, {"key": "b"}], "feed")
    ids = list(Source.objects.values_list("pk", flat=True))
    for action, active in (("disable", False), ("enable", True)):
        admin_client.post("/admin/dispatch/source/", {"action": action, "_selected_action": ids, "confirmed": 2})
        assert set(Source.objects.values_list("active", flat=True)) == {active}


def test_settings_are_checked_as_the_executor_does(admin_client: Client) -> None:
    form = {"type": "echo", "params": '{"rows": -1}'}
    answer: Any = admin_client.post("/admin/dispatch/typesettings/add/", form)
    assert "params" in answer.context["adminform"].form.errors
    assert admin_client.post("/admin/dispatch/typesettings/add/", form | {"params": '{"rows": 2}'}).status_code == 302
    assert TypeSettings.objects.get().params == {"rows": 2}


def test_lists_and_pages_open(admin_client: Client) -> None:
    sources.add("feed", "a")
    type_settings.put("echo", {"rows": 2})
    version = configuration.refresh()
    synclog.clear()
    synclog.note(None, "webhook", synclog.PUSH, error="<b>no</b>")
    synclog.flush(now=True)
    for model in ("source", "typesettings", "configversion", "synclog"):
        assert admin_client.get(f"/admin/dispatch/{model}/").status_code == 200
    assert admin_client.get(f"/admin/dispatch/configversion/{version}/change/").status_code == 200
    page = admin_client.get(f"/admin/dispatch/synclog/{SyncLog.objects.get().pk}/change/")
    assert b"&lt;b&gt;no" in page.content
    assert admin_client.post(f"/admin/dispatch/synclog/{SyncLog.objects.get().pk}/change/", {}).status_code == 403
