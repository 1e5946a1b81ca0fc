"""The page of all runs: filters and pages by the address."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from dispatch.models import Run
from tests.integration import records

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_user("op", is_staff=True))
    return client


def shown(operator: Client, query: str = "") -> list[int]:
    html = operator.get(f"/runs{query}").content.decode()
    return [int(found) for found in re.findall(r'id="run-(\d+)"', html)]


def test_it_pages_from_the_newest_to_the_oldest(operator: Client) -> None:
    ids = [records.run(1).pk for _ in range(120)][::-1]
    first = shown(operator)
    assert first == ids[:50]
    second = shown(operator, f"?before={first[-1]}")
    assert second == ids[50:100]
    assert shown(operator, f"?before={second[-1]}") == ids[100:]


def test_filters_are_in_the_address_and_a_page_keeps_them(operator: Client) -> None:
    night = [records.run(1, name=f"night {number}", type="echo").pk for number in range(60)][::-1]
    failed = records.run(1, name="day", state="failed").pk
    assert shown(operator, "?state=failed") == [failed]
    assert shown(operator, "?type=echo&q=night") == night[:50]
    html = operator.get("/runs?type=echo&q=night").content.decode()
    (older,) = re.findall(r'rel="next" href="(\?[^"]+)"', html)
    assert shown(operator, older.replace("&amp;", "&")) == night[50:]
    assert shown(operator, f"?q={failed}") == [failed]


def test_no_match_names_the_filter_and_offers_to_clear_it(operator: Client) -> None:
    records.run(1)
    html = operator.get("/runs?state=cancelled").content.decode()
    assert "No run is" in html
    assert "cancelled" in html
    assert 'href="/runs"' in html


def test_nothing_yet_shows_what_to_do(operator: Client) -> None:
    assert "manage.py submit data_import" in operator.get("/runs").content.decode()


@pytest.mark.parametrize(
    "query", ["?before=x", "?before=" + "9" * 40, "?state=%00", "?q=%00", "?type=<b>", "?q=" + "x" * 999]
)
def test_nonsense_in_the_address_leads_to_a_page(operator: Client, query: str) -> None:
    records.run(1)
    assert operator.get(f"/runs{query}").status_code == 200


def test_ten_thousand_runs_cost_a_few_queries(operator: Client, django_assert_max_num_queries) -> None:
    blank = records.run(1)
    Run.objects.bulk_create([Run(type="echo", items=blank.items, count=1) for _ in range(10_000)], batch_size=500)
    with django_assert_max_num_queries(6):
        assert len(shown(operator)) == 50
