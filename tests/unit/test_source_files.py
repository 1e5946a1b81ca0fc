"""Files of sources: what each form gives, and that a bad one is named by its line."""

from __future__ import annotations

import pytest

from dispatch.source_files import read
from nodes.protocol import FieldError

OPML = b"""<?xml version="1.0"?>
<opml version="2.0"><head><title>mine</title></head><body>
  <outline text="News">
    <outline text="Paper &amp; ink" xmlUrl="https://paper.example/rss" htmlUrl="https://paper.example/"/>
  </outline>
  <outline title="Blog" xmlURL="https://blog.example/feed"/>
</body></opml>"""


def rows(content: bytes, form: str) -> list[object]:
    return [line.row for line in read(content, form)]


def test_columns_of_a_table_have_their_usual_names_and_the_rest_is_kept() -> None:
    content = "\ufeffsymbol,Title,url,sector\nAAPL,Apple,,tech\n\nIBM,,https://ibm.example,\n".encode()
    assert rows(content, "csv") == [
        {"key": "AAPL", "name": "Apple", "extra": {"sector": "tech"}},
        {"key": "IBM", "address": "https://ibm.example"},
    ]


def test_a_columns_own_name_comes_before_another_one_for_it() -> None:
    for content in (b"symbol,key\nS,K\n", b"key,symbol\nK,S\n"):
        assert rows(content, "csv") == [{"key": "K", "extra": {"symbol": "S"}}]


def test_rows_know_their_lines() -> None:
    assert [line.number for line in read(b'key,name\na,"two\nlines"\nb,\n', "csv")] == [3, 4]
    assert [line.number for line in read(b'{"key": "a"}\n\n"b"\n', "jsonl")] == [1, 3]
    assert [line.number for line in read(b"# mine\na\n\nb\n", "txt")] == [2, 4]


def test_json_is_a_list_of_objects_or_keys() -> None:
    expected = [{"key": "a", "extra": {"x": 1}}, {"key": "b"}]
    assert rows(b'[{"key": "a", "x": 1}, "b"]', "json") == expected
    assert rows(b'{"sources": [{"key": "a", "x": 1}, "b"]}', "json") == expected
    assert rows(b'{"key": "a", "x": 1}\n"b"', "jsonl") == expected


def test_opml_gives_feeds_with_the_folder_they_are_in() -> None:
    assert rows(OPML, "opml") == [
        {
            "kind": "feed",
            "key": "https://paper.example/rss",
            "name": "Paper & ink",
            "address": "https://paper.example/rss",
            "extra": {"folder": "News", "page": "https://paper.example/"},
        },
        {
            "kind": "feed",
            "key": "https://blog.example/feed",
            "name": "Blog",
            "address": "https://blog.example/feed",
            "extra": {},
        },
    ]


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE opml [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE opml SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE opml [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]>',
    ],
)
def test_a_document_type_is_refused_before_any_entity_is_read(declared: str) -> None:
    with pytest.raises(FieldError, match="document type"):
        read(
            f'<?xml version="1.0"?>\n{declared}<opml><outline text="&b;" xmlUrl="https://a.example"/></opml>'.encode(),
            "opml",
        )


@pytest.mark.parametrize(
    ("form", "content", "where"),
    [
        ("csv", b"name,url\nx,y\n", "line 1"),
        ("csv", b"key,name\na,b,c\n", "line 2"),
        ("csv", b"key,name\na\n", "line 2"),
        ("csv", b'key,name\na,"b\n', "line"),
        ("csv", b"", "line 1"),
        ("csv", b"key\n\xff\n", "line 2"),
        ("json", b"[\n{", "line 2"),
        ("json", b"17", "file"),
        ("json", b"[" * 100_000, "file"),
        ("jsonl", b'"a"\n{"b\n', "line 2"),
        ("opml", b"<opml>\n<outline>\n</opml>", "line 3"),
        ("opml", b"<html/>", "file"),
        ("opml", b"<opml/>", "file"),
        ("opml", b"", "line"),
        ("", b"a", "format"),
        ("yaml", b"a", "format"),
    ],
)
def test_what_is_no_such_file_is_refused_at_its_line(form: str, content: bytes, where: str) -> None:
    with pytest.raises(FieldError) as refused:
        read(content, form, "sources.bin")
    assert refused.value.field.startswith(where)


def test_the_ending_of_a_name_says_the_form() -> None:
    assert [line.row for line in read(b"a\n", filename="list.TXT")] == [{"key": "a"}]
