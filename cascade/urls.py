"""Addresses: pages, API, admin. A child serves its own few."""

from __future__ import annotations

from django.conf import settings
from django.urls import URLPattern, URLResolver, include, path
from django.views.i18n import set_language

from api import health, metrics, pages
from api.dialects import node
from cascade.admin_later import Later

handler400 = "api.errors.handler400"
handler403 = "api.errors.handler403"
handler404 = "api.errors.handler404"
handler500 = "api.errors.handler500"

parent: list[URLPattern | URLResolver] = [
    path("api/", include("api.urls")),
    Later(),
    *pages.urlpatterns,
    path("language", set_language, name="set_language"),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", metrics.page, name="metrics"),
]
if settings.CASCADE.role == "child":
    urlpatterns: list[URLPattern | URLResolver] = [*node.urlpatterns]
elif settings.CASCADE.role == "standalone":
    urlpatterns = [*node.mounted, *parent]
else:
    urlpatterns = parent
