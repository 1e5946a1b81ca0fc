"""Where /admin/ is, for a server that has not loaded its pages yet."""

from __future__ import annotations

from typing import Any

from django.urls import URLResolver
from django.urls.resolvers import RoutePattern
from django.utils.datastructures import MultiValueDict
from django.utils.translation import get_language


class Later(URLResolver):
    """/admin/, loaded when an address below it is asked for or named, not when the server's are looked through."""

    def __init__(self) -> None:
        super().__init__(RoutePattern("admin/"), "cascade.admin_urls", app_name="admin", namespace="admin")

    def _populate(self) -> None:
        # Whoever names an address of a namespace makes a resolver of its own from ``url_patterns``; this one's are of
        # no use to anybody.
        language = get_language()
        bare: Any = self
        bare._namespace_dict[language], bare._app_dict[language] = {}, {}
        bare._reverse_dict[language] = MultiValueDict()
        bare._populated = True
