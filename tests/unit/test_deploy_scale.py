"""compose.scale.yaml and the proxy's settings: what they name exists and fits together."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

from cascade.config import BASE_DIR, Config, names
from nodes.protocol import SEGMENT_BYTES_LIMIT

WEBS, DISPATCHERS, CHILDREN = ("web1", "web2"), ("dispatcher1", "dispatcher2"), ("child1", "child2")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    composed: dict[str, dict[str, Any]] = yaml.safe_load((BASE_DIR / "compose.scale.yaml").read_text())
    return composed["services"]


@pytest.fixture(scope="module")
def proxy() -> str:
    return (BASE_DIR / "deploy" / "nginx.conf").read_text()


def test_every_process_of_the_parent_has_the_same_settings_and_the_same_folder(services):
    alike = [services[name] for name in (*WEBS, *DISPATCHERS)]
    assert all(each["environment"] == alike[0]["environment"] for each in alike)
    assert all("parent:/data" in each["volumes"] for each in alike)
    assert services["setup"]["environment"] == alike[0]["environment"]


def test_every_setting_it_gives_is_one_and_fits(services):
    given = {name for service in services.values() for name in service.get("environment", {})}
    ours = {name.removeprefix("CASCADE_").lower() for name in given if name.startswith("CASCADE_")}
    assert {"database_url", "redis_url", "dispatcher"} <= ours <= names()
    given_now = {"dispatcher": services["web1"]["environment"]["CASCADE_DISPATCHER"]}
    assert Config.model_validate(given_now).dispatcher == "separate"


def test_its_commands_are_ours(services):
    for name in (*WEBS, *DISPATCHERS, *CHILDREN):
        assert get_commands()[services[name]["command"][0]] == "cascade"
    assert {services[name]["command"][0] for name in DISPATCHERS} == {"dispatcher"}


def test_a_dispatcher_has_a_health_check_of_its_own(services):
    # The image's asks a server for /healthz, which a dispatcher is not.
    for name in DISPATCHERS:
        assert services[name]["healthcheck"]["test"][1:] == ["python", "manage.py", "dispatcher", "--status"]


def test_only_the_proxy_is_reached_and_only_from_this_machine(services):
    assert [name for name in services if "ports" in services[name]] == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in services["proxy"]["ports"])


def test_no_password_is_in_it(services):
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"://[^/]*:[^/]*@|PASSWORD", f"{variable} {value}"):
                assert "${POSTGRES_PASSWORD:-" in value, (name, variable)


def test_the_proxy_asks_every_web_process_and_is_the_file_that_compose_names(services, proxy):
    assert set(re.findall(r"server (\w+):8000", proxy)) == set(WEBS)
    assert services["proxy"]["volumes"][0].startswith("./deploy/nginx.conf:")
    for name in CHILDREN:
        assert services[name]["environment"]["CASCADE_PARENT"] == "http://proxy:8000"


def test_the_proxy_lets_through_what_children_send_and_wait_for(proxy):
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", proxy)
    assert int(megabytes) * 2**20 > SEGMENT_BYTES_LIMIT
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", proxy)
    assert int(seconds) > 2 * Config.model_validate({}).long_poll_seconds
    # Signatures cover the authority and the path.
    assert "proxy_set_header Host $http_host;" in proxy
    assert "proxy_pass http://web;" in proxy
