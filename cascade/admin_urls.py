"""The addresses below /admin/. Importing this loads the admin."""

from __future__ import annotations

from django.contrib import admin

from cascade import administration

administration.load()
urlpatterns = admin.site.get_urls()
