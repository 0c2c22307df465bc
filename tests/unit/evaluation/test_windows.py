"""Windows and fingerprints of token streams."""

import pytest
import torch

from solm.core.errors import DataError
from solm.evaluation.texts import TokenStream, stream_of, token_stream


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
    with pytest.raises(DataError, match="s holds 85 tokens; one text needs 86"):
        stream.random(1, 86, generator)


def test_the_end_of_a_stream_is_apart_where_both_parts_hold_a_window():
    stream = TokenStream(torch.arange(100), "s", "f")
    for part, length, end in ((0.1, 5, 10), (0.1, 30, 30), (0.1, 50, 50), (0.5, 20, 50)):
        first, last = stream.parted(part, length)
        assert torch.equal(torch.cat([first.tokens, last.tokens]), stream.tokens)
        assert len(last.tokens) == end
    for part, length in ((0.1, 51), (0, 5), (0.9, 15)):
        assert [len(each.tokens) for each in stream.parted(part, length)] == [100, 100]


def test_fingerprint_depends_on_the_text(byte_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = token_stream(str(tmp_path / "a.txt"), byte_tokenizer).fingerprint
    (tmp_path / "a.txt").write_text("two")
    assert token_stream(str(tmp_path / "a.txt"), byte_tokenizer).fingerprint != first
