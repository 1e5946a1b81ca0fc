"""Which result store there is follows from the settings alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as conf

from cascade.config import Config
from dispatch.results import opening, saver
from dispatch.results.lake import LakeStore
from dispatch.results.store import ResultStore
from nodes.protocol import Conflict

URL = "postgresql://user:geheim@127.0.0.1:1/name"


@pytest.fixture
def using(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saver, "_store", None)
    monkeypatch.setattr(opening, "_reading", None)

    def use(**given: Any) -> None:
        settings.CASCADE = Config(data_dir=tmp_path, **given)

    return use


def test_one_process_has_a_file_and_several_a_lake(using: Any, tmp_path: Path) -> None:
    using()
    assert isinstance(opening.make_store(), ResultStore)
    using(database_url=URL)
    lake = opening.make_store()
    assert isinstance(lake, LakeStore)
    assert lake.place.root == f"{tmp_path}/lake/"
    assert lake.writing
    using(database_url=URL, result_store="file")
    assert isinstance(opening.make_store(), ResultStore)
    using(result_store="lake")
    with pytest.raises(Conflict, match="database_url"):
        opening.make_store()


def test_a_lake_is_where_the_settings_say(using: Any) -> None:
    using(
        database_url=URL,
        lake_path="s3://bucket/prefix/",
        lake_endpoint="http://127.0.0.1:9000",
        lake_access_key="AK",
        lake_secret_key="geheim",
        lake_merge_seconds=60,
    )
    lake = opening.make_store()
    assert isinstance(lake, LakeStore)
    assert (lake.place.root, lake.place.s3.access_key) == ("s3://bucket/prefix/", "AK")
    assert lake._tidying.merge_seconds == 60
    assert lake.place.process == conf.PROCESS  # a successor ends its connections by this name
    assert "geheim" not in repr(lake.place) + str(lake.place)


def test_a_process_without_a_saver_reads_a_lake_and_no_file(using: Any) -> None:
    using()
    with pytest.raises(Conflict, match="does not hold"):
        saver.results()
    using(database_url=URL)
    store = saver.results()
    assert isinstance(store, LakeStore)
    assert not store.writing
    assert saver.results() is store


@pytest.mark.parametrize("path", ["/data/la*ke", "/data/[lake]", "http://host/lake", "s3://", "/da'ta"])
def test_a_path_that_cannot_be_a_lakes_is_refused(using: Any, path: str) -> None:
    with pytest.raises(ValueError, match="lake_path"):
        using(lake_path=path)


def test_naming_a_lake_loads_no_duckdb() -> None:
    script = (
        "import sys, pathlib\n"
        "from dispatch.results.lake import LakeStore\n"
        "from dispatch.results.lake_place import Place\n"
        "LakeStore(Place('postgresql://host/name', '/nowhere')).open()\n"
        "assert not {'duckdb', 'pyarrow', 'pandas', 'psycopg'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
