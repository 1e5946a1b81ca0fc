"""The project as a Django app, so that its commands are found and come before Daphne's."""

from django.apps import AppConfig


class CascadeConfig(AppConfig):
    name = "cascade"

    def ready(self) -> None:
        from django.conf import settings

        if not settings.SERVES_CHILD:
            from cascade import lean

            lean.load()
        from cascade import checks  # noqa: F401  # registers them
        from nodes import surroundings

        surroundings.settle(settings.CASCADE.surroundings)
