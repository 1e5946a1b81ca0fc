"""What a shard needs of this parent's own tables before it can run (``Executor.reads``), as a file for its node.

What may be read follows from the allocation alone: a node gets the rows that its live work is about, no others.
"""

from __future__ import annotations

from pathlib import Path

from dispatch.lifecycle.kept import about, frozen
from dispatch.models import Allocation
from dispatch.results.saver import results
from dispatch.states import LIVE
from nodes import executors
from nodes.executors.base import Reading
from nodes.keys import Caller
from nodes.protocol import SEGMENT_BYTES_LIMIT, Conflict, NotFound, TooLarge


def write(caller: Caller, allocation: int, file: Path) -> None:
    """The rows for ``allocation`` into ``file``, an Arrow IPC file.

    Raises NotFound where it is not the caller's or needs nothing, Conflict where its lease was lost, TooLarge.
    """
    mine = Allocation.objects.filter(pk=allocation, node_id=caller.node_id)
    found = mine.values_list("run_id", "start", "stop", "state").first()
    if found is None:
        raise NotFound(f"this node has no allocation {allocation}")
    run, start, stop, state = found
    if state not in LIVE:
        raise Conflict(f"allocation {allocation} is {state}: its lease was lost")
    work = about(run)
    asked = executors.get(work["type"]).reads(frozen(run).slice(start, stop), work["params"])
    if asked is None:
        raise NotFound(f"allocation {allocation} needs no rows")
    _write(asked, file)


def _write(asked: Reading, file: Path) -> None:
    import pyarrow as pa

    packed = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        results().read(asked) as rows,
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, rows.schema, options=packed) as writer,
    ):
        for batch in rows:
            writer.write_batch(batch)
            if sink.tell() > SEGMENT_BYTES_LIMIT:
                raise TooLarge(
                    f"the rows for this shard take more than {SEGMENT_BYTES_LIMIT} bytes: use smaller shards"
                )
