"""Texts that the model samples itself."""

import torch

from solm.training.self_text import sample_texts


def test_self_samples_begin_as_told_and_repeat_for_a_seed(tiny_lm):
    starts = torch.tensor([[40, 41, 42], [50, 51, 52]])
    texts = sample_texts(tiny_lm, starts, 12, seed=1)
    assert [text[:3] for text in texts] == tiny_lm.tokenizer.batch_decode(starts)
    assert sample_texts(tiny_lm, starts, 12, seed=1) == texts
    assert sample_texts(tiny_lm, starts, 12, seed=2) != texts
