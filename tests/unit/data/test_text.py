"""Text sources: what they give, and what malformed ones say."""

import pytest
import torch

from solm.core.errors import DataError
from solm.data.text import documents, undo_wikitext
from solm.data.windows import stream_of, token_stream
from solm.training.self_text import sample_texts


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


def test_windows(byte_tokenizer):
    stream = stream_of(["abcdefgh" * 10, "xyz"], byte_tokenizer, "s")
    assert len(stream.tokens) == 85
    generator = torch.Generator().manual_seed(0)
    spaced = stream.spaced(99, 10, generator)
    assert spaced.shape == (8, 10)
    assert (
        len({tuple(row) for row in stream.tokens[:80].view(8, 10).tolist()} & {tuple(r) for r in spaced.tolist()}) > 0
    )
    assert stream.random(5, 85, generator).tolist() == [stream.tokens.tolist()] * 5
    with pytest.raises(DataError, match="s holds 85 tokens; one sequence needs 86"):
        stream.random(1, 86, generator)


def test_fingerprint_depends_on_the_text(byte_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = token_stream(str(tmp_path / "a.txt"), byte_tokenizer).fingerprint
    (tmp_path / "a.txt").write_text("two")
    assert token_stream(str(tmp_path / "a.txt"), byte_tokenizer).fingerprint != first


def test_self_samples_begin_as_told_and_repeat_for_a_seed(tiny_lm):
    starts = torch.tensor([[40, 41, 42], [50, 51, 52]])
    texts = sample_texts(tiny_lm, starts, 12, seed=1)
    assert [text[:3] for text in texts] == tiny_lm.tokenizer.batch_decode(starts)
    assert sample_texts(tiny_lm, starts, 12, seed=1) == texts
    assert sample_texts(tiny_lm, starts, 12, seed=2) != texts
