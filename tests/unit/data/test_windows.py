"""Windows and fingerprints of token streams."""

import pytest
import torch

from solm.core.errors import DataError
from solm.data.windows import stream_of, token_stream


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


def test_fingerprint_depends_on_the_text(byte_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = token_stream(str(tmp_path / "a.txt"), byte_tokenizer).fingerprint
    (tmp_path / "a.txt").write_text("two")
    assert token_stream(str(tmp_path / "a.txt"), byte_tokenizer).fingerprint != first
