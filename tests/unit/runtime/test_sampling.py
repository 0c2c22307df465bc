"""Plain sampling in NumPy: what can be drawn, how often, and when transformers is asked instead."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from solm.backends.weight_sample import spread
from solm.core.errors import SolmError
from solm.runtime.sampling import Penalised, Plain, Sampler


def logits(seed: int, size: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


@given(
    st.integers(0, 1000), st.sampled_from([0.2, 0.7, 1.0, 1.8]), st.sampled_from([0, 1, 7, 50, 299, 300, 1000]),
    st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]), st.sampled_from([0, 0.02, 0.4, 1.0]),
)  # fmt: skip
def test_tokens_are_drawn_as_after_transformers_processors(seed, temperature, top_k, top_p, min_p):
    expected = torch.from_numpy(logits(seed))[None]
    processors = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p else []
    for processor in processors:
        expected = processor(None, expected)
    given_ = logits(seed)
    total = expected[0].double().softmax(0).cumsum(0).numpy()
    for place in np.random.default_rng(seed).random(20):
        drawn = Plain(temperature, top_k, top_p, min_p).draw(given_, place)
        assert expected[0, drawn] > -torch.inf
        # The place of a token that is drawn is its own, but for rounding at its ends.
        assert (total[drawn - 1] if drawn else 0.0) - 1e-6 <= place <= total[drawn] + 1e-6
    assert np.array_equal(given_, logits(seed)), "the logits stay as they are"


def test_biases_and_penalties_go_in_the_order_of_transformers_and_vllm():
    """A bias, then repetitions with the prompt's, then what the reply itself has said, once and by count."""
    ids, biases, said = np.array([[5, 9, 5, 250]]), {5: -2.5, 7: 4.0}, []
    penalised = Penalised(ids, 1.3, presence=0.7, frequency=-0.4, biases=biases)
    biased = SequenceBiasLogitsProcessor({(token,): bias for token, bias in biases.items()})
    for seed, token in enumerate((7, 9, 7, 7, 299)):
        seen = torch.from_numpy(np.append(ids, [said], axis=1).astype(np.int64))
        expected = RepetitionPenaltyLogitsProcessor(1.3)(seen, biased(seen, torch.from_numpy(logits(seed))[None]))
        expected = expected[0].numpy() - np.float32(-0.4) * np.bincount(said, minlength=300)
        expected = (expected - np.float32(0.7) * np.isin(np.arange(300), said)).astype(np.float32)
        np.testing.assert_allclose(penalised.scores(logits(seed)), expected, rtol=1e-5, atol=1e-6)
        penalised.add(token)
        said.append(token)


def test_penalties_go_with_what_only_transformers_can_do(tiny_lm):
    ids, some = np.array([[7, 8, 9, 7]]), logits(4, 259)
    sampler = Sampler.of(tiny_lm, ids, 0, {"presence_penalty": 50.0, "no_repeat_ngram_size": 1})
    first = sampler.choose(some)
    assert first not in (7, 8, 9)
    second = sampler.choose(some)
    assert second not in (7, 8, 9, first)
    assert Sampler.of(tiny_lm, ids, 0, {"presence_penalty": 1.0}).largest == 0
    assert Sampler.of(tiny_lm, ids, 0, {"presence_penalty": 0, "frequency_penalty": 0.0}).largest == 1


def test_what_the_model_itself_asks_for_is_done_once(tiny_lm, monkeypatch):
    """Also beside what only transformers can do, which knows the model's own options, too."""
    monkeypatch.setattr(tiny_lm.model.generation_config, "repetition_penalty", 1.5)
    ids, some = np.array([[7, 8, 9, 7]]), logits(4, 259)
    some[7], some[3] = 1.2 * some.max(), 1.1 * some.max()
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.from_numpy(ids), torch.from_numpy(some)[None])[0].numpy()
    for options in ({}, {"suppress_tokens": [3]}):
        expected[options.get("suppress_tokens", [])] = -np.inf
        assert Sampler.of(tiny_lm, ids, 0, options).choose(some) == expected.argmax()


def test_a_bias_on_a_token_that_does_not_exist_is_refused(tiny_lm):
    over = tiny_lm.shapes.vocabulary
    with pytest.raises(SolmError, match=f"sequence_bias: there is no token {over}; the model has {over}"):
        Sampler.of(tiny_lm, np.array([[7]]), 0, {"sequence_bias": {(over,): 1.0}})


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({}, 1), ({"temperature": 0.0}, 1), ({"temperature": 0.7}, 50), ({"top_p": 0.8, "top_k": 20}, 20),
        ({"top_k": 64}, 64), ({"top_k": 65}, 0), ({"top_k": 0, "temperature": 1.0}, 0),
        ({"temperature": 0.7, "sequence_bias": {(7,): 1.0}}, 0), ({"temperature": 0.7, "no_repeat_ngram_size": 2}, 0),
    ],
)  # fmt: skip
def test_how_many_of_the_largest_logits_count(tiny_lm, options, largest):
    assert Sampler.of(tiny_lm, np.array([[7, 8]]), 0, options).largest == largest


def test_a_policys_identity_has_the_rows_that_torchs_linspace_gives():
    known = (2, 33, 259, 32000, 49152, 50257, 128256, 151646, 151936, 152064, 256000, 262144)
    for vocabulary in (*known, *range(9000, 9200)):
        expected = torch.linspace(0, vocabulary - 1, 32).long().tolist()
        assert spread(vocabulary).tolist() == expected, vocabulary


def test_blocks_of_weights_do_not_change_what_is_drawn():
    """Nor do blocks that nothing can be drawn from, at either end or within."""
    some = logits(5, 2600)
    for first, last in ((0, 600), (1024, 1536), (1600, 1601), (2500, 2600)):
        some[first:last] = -np.inf
    total = np.cumsum(np.exp(some - some.max()), dtype=np.float64)
    for place in (0.0, float(np.nextafter(1, 0)), *np.random.default_rng(0).random(500)):
        found = Plain().draw(some, place)
        assert some[found] > -np.inf
        assert found == min(2499, int(np.searchsorted(total, place * total[-1], side="right")))
