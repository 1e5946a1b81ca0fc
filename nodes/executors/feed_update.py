"""Feeds and their articles, as the clients of the ``cascade`` dialect bring them."""

from __future__ import annotations

from nodes.executors.base import Column, Dataset, Executor, Item, ItemFailed, Param, Rows, item_key


class FeedUpdate(Executor):
    """Items are keys of sources of kind feed; rows are articles."""

    type = "feed_update"
    title = "New articles of feeds, by clients that fetch them with code of their own"
    params = (
        Param("message_type", "integer", 0, "What a client does with the articles, in its own numbers."),
        Param("message_template", "string", "", "Text of its message."),
        Param("web_hook_url", "string", "", "Where the client sends its message."),
        Param("headers", "string", "", "HTTP headers the client uses, in its own notation."),
        Param("cookies", "string", "", "Cookies the client uses, in its own notation."),
    )
    dataset = Dataset(
        table="articles",
        columns=(
            Column("id", "string"),
            Column("feed", "string"),
            Column("title", "string"),
            Column("url", "string"),
            Column("author", "string"),
            Column("published", "timestamp"),
            Column("summary", "string"),
            Column("text", "string"),
            Column("image", "string"),
        ),
        key=("feed", "id"),
    )

    def run(self, item: Item) -> Rows:
        raise ItemFailed(f"{item_key(item)}: this node has no code that fetches feeds")
