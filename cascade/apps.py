"""The project as a Django app, so that its commands are found and come before Daphne's."""

from django.apps import AppConfig


class CascadeConfig(AppConfig):
    name = "cascade"

    def ready(self) -> None:
        from cascade import checks  # noqa: F401  # registers them
