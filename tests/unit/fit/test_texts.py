"""How texts are split, and what is too little of them."""

import pytest
import torch

from solm.core.errors import DataError
from solm.evaluation.texts import TokenStream
from solm.fit.texts import Texts, WholeTexts, continued, sample


def stream(tokens: int, name: str = "a") -> TokenStream:
    return TokenStream(torch.arange(tokens), name, "f")


def test_what_is_held_out_is_read_by_nothing_else():
    texts = Texts.split([stream(40_000), stream(20_000, "b")], None)
    assert texts.context == 512
    for whole, train, held in zip((40_000, 20_000), texts.train, texts.held_out, strict=True):
        assert torch.equal(torch.cat([train.tokens, held.tokens]), torch.arange(whole))
        assert len(held.tokens) == whole // 4
    assert texts.windows(641) == 2 * (5000 // 641)


def test_short_texts_and_models_get_a_shorter_context():
    assert Texts.split([stream(4200)], None).context == 384
    assert Texts.split([stream(40_000)], 512).context == 256
    assert len(Texts.split([stream(2056)], None).held_out[0].tokens) == 1028


def test_too_little_is_refused_by_name():
    with pytest.raises(DataError, match="--data: b holds 2000 tokens; a fit needs 2056 of every source"):
        Texts.split([stream(40_000), stream(2000, "b")], None)
    with pytest.raises(DataError, match="the model's context of 200 tokens is below 257"):
        Texts.split([stream(40_000)], 200)


def test_of_much_text_pieces_from_everywhere_are_read():
    documents = [str(number % 10) * 150_000 for number in range(20)]
    assert sample(documents, 0) == documents
    found = sample(documents, 0, most=1_000_000)
    assert 1_000_000 <= sum(map(len, found)) < 1_100_000
    assert len({piece[0] for piece in found}) > 5
    assert found == sample(documents, 0, most=1_000_000) != sample(documents, 1, most=1_000_000)


def test_windows_of_whole_texts_are_their_beginnings():
    texts = torch.arange(12).view(3, 4)
    stream = WholeTexts.of(texts, "own")
    found = stream.random(50, 3, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in found.tolist()} == {(0, 1, 2), (4, 5, 6), (8, 9, 10)}
    assert stream.fingerprint != WholeTexts.of(texts + 1, "own").fingerprint
    assert [part.tokens.tolist() for part in stream.parted(0.1, 3)] == [list(range(8)), [8, 9, 10, 11]], "whole texts"
    with pytest.raises(DataError, match="own holds texts of 4 tokens; 5 are needed"):
        stream.random(1, 5, torch.Generator())


def test_the_models_own_texts_begin_as_given_and_follow_their_seed(tiny_lm):
    starts, done = torch.randint(3, 259, (3, 20), generator=torch.Generator().manual_seed(1)), []
    rows = continued(tiny_lm, starts, 30, 1, done.append)
    assert [row[:20] for row in rows] == starts.tolist()
    assert {len(row) for row in rows} == {30}
    assert done[-1] == 10
    assert continued(tiny_lm, starts, 30, 1, done.append) == rows
    assert continued(tiny_lm, starts, 30, 2, done.append) != rows
