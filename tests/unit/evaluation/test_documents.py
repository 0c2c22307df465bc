"""Text sources: what they give, and what malformed ones say."""

import pytest

from solm.core.errors import DataError
from solm.evaluation.texts import documents, undo_wikitext


def test_pydoc_is_split_by_topic_without_overlap():
    train, held_out = documents("pydoc:train"), documents("pydoc:heldout")
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(documents("pydoc"))
    assert sum(map(len, train)) > 200_000
    assert sum(map(len, held_out)) > 50_000


def test_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n')
    (tmp_path / "c.raw").write_text("raw")
    assert documents(str(tmp_path / "b.jsonl")) == ["one", "two"]
    assert documents(str(tmp_path)) == ["plain text", "one", "two", "raw"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: expected an object with a string field 'text'"),
        ("a.jsonl", rb'{"text": "\ud83d"}', "line 1: the text is not valid Unicode text"),
        ("a.jsonl", b'["text"]\n', "line 1: expected an object"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.txt", b"ok \xff", "not UTF-8 at byte 3"),
        ("a.pdf", b"x", "is none of .txt, .raw, .jsonl"),
    ],
)
def test_malformed_files_name_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(str(tmp_path / name))


def test_missing_sources(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        documents(str(tmp_path))
    with pytest.raises(DataError, match="cannot read"):
        documents(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="choose pydoc"):
        documents("pydoc:test")
    with pytest.raises(DataError, match="neither a file, a folder nor a reachable hub data set"):
        documents("nobody/nothing-here")


def test_wikitext_spacing_is_undone_and_plain_text_kept():
    assert undo_wikitext('a state @-@ of @-@ the @-@ art ship , 1 @,@ 000 tons . " Quoted " ( so )') == (
        'a state-of-the-art ship, 1,000 tons. "Quoted" (so)'
    )
    assert undo_wikitext("x , y") == "x , y"
