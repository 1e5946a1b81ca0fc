"""What a shard needs of this parent's own tables before it can run (``Executor.reads``), as a file for its node.

What may be read follows from the allocation alone: a node gets the rows that its live work is about, no others. A relay
has no such tables: it gives its node what it fetched from above, or the node's part of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch.lifecycle.kept import about, frozen
from dispatch.models import Allocation, Origin
from dispatch.relay import inputs as above
from dispatch.results.saver import results
from dispatch.states import LIVE
from nodes import executors
from nodes.executors.base import Reading
from nodes.keys import Caller
from nodes.protocol import SEGMENT_BYTES_LIMIT, Conflict, NotFound, TooLarge

if TYPE_CHECKING:
    import pyarrow as pa


def write(caller: Caller, allocation: int, file: Path) -> None:
    """The rows for ``allocation`` into ``file``, an Arrow IPC file.

    Raises NotFound where it is not the caller's or needs nothing, Conflict where its lease was lost, TooLarge; NotYet
    where they are still to come from the node above.
    """
    mine = Allocation.objects.filter(pk=allocation, node_id=caller.node_id)
    found = mine.values_list("run_id", "run__count", "start", "stop", "state", "slots").first()
    if found is None:
        raise NotFound(f"this node has no allocation {allocation}")
    run, count, start, stop, state, slots = found
    if state not in LIVE:
        raise Conflict(f"allocation {allocation} is {state}: its lease was lost")
    from_above = Origin.objects.filter(pk=run).exists()
    asked = _reads(run, start, stop)
    if asked is None:
        raise NotFound(f"allocation {allocation} needs no rows")
    # A relay gets at once what several nodes below it need.
    limit = SEGMENT_BYTES_LIMIT * slots
    if from_above:
        _write_part(above.rows_of(run), asked, _reads(run, 0, count), file, limit)
    else:
        with results().read(asked) as rows:
            _write(rows, rows.schema, file, limit)


def _reads(run: int, start: int, stop: int) -> Reading | None:
    work = about(run)
    return executors.get(work["type"]).reads(frozen(run).slice(start, stop), work["params"])


def _write_part(whole: Path, asked: Reading, of: Reading | None, file: Path, limit: int) -> None:
    """What ``asked`` reads of the rows in ``whole``, which are those that ``of`` reads."""
    import pyarrow as pa

    if asked == of:
        try:
            os.link(whole, file)
        except OSError:  # another disk
            shutil.copyfile(whole, file)
        return
    with pa.OSFile(str(whole)) as source:
        reader = pa.ipc.open_file(source)
        _write(_selected(reader, asked), reader.schema, file, limit)


def _selected(reader: Any, asked: Reading) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        if asked.column in batch.schema.names:
            column = batch.column(asked.column)
            batch = batch.filter(pc.is_in(column, value_set=pa.array(asked.values, column.type)))
        yield batch


def _write(batches: Any, schema: Any, file: Path, limit: int) -> None:
    import pyarrow as pa

    packed = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema, options=packed) as writer:
        for batch in batches:
            writer.write_batch(batch)
            if sink.tell() > limit:
                raise TooLarge(f"the rows for this shard take more than {limit} bytes: use smaller shards")
