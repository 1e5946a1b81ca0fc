"""Django's admin and its theme as apps that cost a server nothing until somebody asks for /admin/.

What makes the site, its pages and the theme's widgets is imported by ``cascade.administration``, which only addresses
below /admin/ need; ``manage.py check`` looks at all of it.
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core import checks


class Theme(AppConfig):
    """unfold's templates, tags and files. Its own configuration would replace the site, and import all it needs."""

    name = "unfold"


class Admin(SimpleAdminConfig):
    default_site = "cascade.administration.Site"

    def ready(self) -> None:
        checks.register(check_dependencies, checks.Tags.admin)
        checks.register(_check_pages, checks.Tags.admin)


def _check_pages(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    from cascade import administration

    administration.load()
    return check_admin_app(app_configs, **options)
