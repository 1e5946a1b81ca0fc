"""Settings of task types: parameters that runs have unless they say otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch import lifecycle, type_settings
from dispatch.models import TypeSettings
from nodes.protocol import FieldError
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


def test_what_is_put_is_what_is_there(api: Api) -> None:
    assert api.get("executors/echo/settings").body == {}
    answer = api.put("executors/echo/settings", {"rows": "3"})
    assert (answer.status, answer.body) == (200, {"rows": 3})
    assert api.get("executors/echo/settings").body == {"rows": 3}
    assert api.put("executors/echo/settings", {}).body == {}
    assert not TypeSettings.objects.exists()


def test_a_part_is_enough_and_runs_fill_in_the_rest() -> None:
    # A run needs a source; settings for all runs may leave it to them.
    type_settings.put("data_import", {"start_date": "2010-01-01"})
    with pytest.raises(FieldError, match="source"):
        lifecycle.submit(type="data_import", items=["AAPL"])
    run = lifecycle.submit(type="data_import", items=["AAPL"], params={"source": "sample"})
    assert (run.params["start_date"], run.params["freq"]) == ("2010-01-01", "D")


def test_a_run_says_otherwise() -> None:
    type_settings.put("echo", {"rows": 3, "seconds": 1})
    run = lifecycle.submit(type="echo", items=["a"], params={"rows": 5})
    assert (run.params["rows"], run.params["seconds"]) == (5, 1.0)


def test_settings_of_one_source_say_nothing_to_a_run_with_another() -> None:
    type_settings.put("data_import", {"source": "files", "delimiter": ";", "start_date": "2010-01-01"})
    run = lifecycle.submit(type="data_import", items=["AAPL"], params={"source": "sample"})
    assert (run.params["source"], run.params["start_date"], "delimiter" in run.params) == (
        "sample",
        "2010-01-01",
        False,
    )


@pytest.mark.parametrize(
    ("task_type", "params", "field"),
    [
        ("echo", {"rows": -1}, "params.rows"),
        ("echo", {"unheard": 1}, "params.unheard"),
        ("echo", [], "params"),
        ("echo", 7, "params"),
        ("data_import", {"source": "nowhere"}, "params.source"),
        ("data_import", {"source": "sample", "freq": "1s"}, "params.freq"),
        ("data_import", {"start_date": "yesterday"}, "params.start_date"),
        ("data_import", [], "params"),
    ],
)
def test_what_the_executor_would_refuse_is_refused(api: Api, task_type: str, params: Any, field: str) -> None:
    answer = api.put(f"executors/{task_type}/settings", params)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert not TypeSettings.objects.exists()


def test_a_type_nobody_knows_is_not_found(api: Api) -> None:
    assert api.get("executors/nonsense/settings").status == 404
    assert api.put("executors/nonsense/settings", {}).status == 404
