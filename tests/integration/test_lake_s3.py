"""A lake whose rows are on S3: a small one of the tests' own, over real sockets."""

from __future__ import annotations

import dataclasses

import pytest

from dispatch.results.lake import LakeStore
from dispatch.results.lake_place import S3, Place
from dispatch.results.lake_tidying import Tidying
from nodes.protocol import Conflict
from tests.integration.lake_writer import shard
from tests.integration.lakes import place, server
from tests.integration.object_storage import object_storage

__all__ = ["place", "server"]


def test_rows_are_saved_read_merged_and_removed_on_s3(place: Place) -> None:
    with object_storage() as storage:
        s3 = S3(storage.url, "eu-central-1", "AK", "geheim")
        there = dataclasses.replace(place, path="s3://rows/lake", s3=s3)
        with LakeStore(there, memory="200MB") as store:
            for start in range(3):
                store.append([shard(start)])
            with pytest.raises(Conflict):
                store.append([shard(1)])
            assert {key.split("/")[0] for key in storage.objects} == {"rows"}
            before = store.select("pairs", raw=True).read_all().to_pylist()
            storage.objects["rows/lake/main/ledger/abandoned.parquet"] = b"x"
            for _ in range(2):
                Tidying(keep_seconds=0).run(store._write, there)
            assert len(storage.objects) == 2
            assert store.select("pairs", raw=True).read_all().to_pylist() == before
        assert "geheim" not in repr(there)
        with LakeStore(there, memory="200MB", writing=False) as other:
            assert len(other.select("pairs").read_all()) == 6
            with other.reader() as connection, pytest.raises(Exception, match=r"(?i)permission|disabled"):
                connection.execute("SELECT * FROM read_blob('s3://other/secret')")
