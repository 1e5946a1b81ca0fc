"""Work whose type and code only its clients know: devices of the ``distribution`` dialect."""

from __future__ import annotations

from nodes.executors.base import Column, Dataset, Executor, Item, ItemFailed, Param, Rows, item_key


class External(Executor):
    """Items are texts that name the work; each row is one object that a client brought back."""

    type = "external"
    title = "Work of clients with code of their own; its results are kept as they come"
    params = (
        Param("task_type", "string", help="The client's own name for this kind of work."),
        Param("task_data", "object", {}, "What the client needs to know."),
    )
    dataset = Dataset(
        table="external",
        columns=(
            Column("task", "string"),
            Column("number", "int64"),
            Column("type", "string"),
            Column("data", "json"),
        ),
        key=("task", "number"),
    )

    def run(self, item: Item) -> Rows:
        raise ItemFailed(f"{item_key(item)}: this node has no code for it")
