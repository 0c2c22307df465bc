"""What a model makes of each source, and whether that is like the text that a policy was measured on."""

import numpy as np
import torch

from helpers.timings import made_curve
from solm.evaluation.perplexity import EvaluationSettings, evaluate, held_out_windows
from solm.evaluation.result import shares_of, text_facts, unlike
from solm.evaluation.texts import TokenStream, stream_of

SETTINGS = EvaluationSettings(budgets=(0.8,), texts=5, context=90, length=20, trials=0, examples=0)


def sources(tokenizer) -> list[TokenStream]:
    return [stream_of([text * 200], tokenizer, name) for name, text in (("plain", "abcdefg "), ("umlauts", "äöüß"))]


def test_every_source_has_its_loss_and_its_characters(tiny_lm, byte_tokenizer):
    streams = sources(byte_tokenizer)
    windows = held_out_windows(streams, SETTINGS)
    plain, umlauts = text_facts(tiny_lm, streams, windows, np.array([1.0, 2.0, 3.0, 5.0, 7.0]))
    assert (plain.name, plain.nats, umlauts.nats) == ("plain", 2, 6), "three texts and two"
    assert plain.characters_per_token == 1, "a token is a byte"
    assert 0.5 <= umlauts.characters_per_token < 0.55, "of which a letter has two"
    assert shares_of(5, 3) == [2, 2, 1]
    tiny_lm.tokenizer = None
    assert text_facts(tiny_lm, streams, windows, np.zeros(5)) == []


def test_text_unlike_that_of_the_curve_is_named_with_what_it_loses(value_lm, byte_tokenizer):
    result = evaluate(value_lm, sources(byte_tokenizer), SETTINGS)
    assert [source.name for source in result.sources] == ["plain", "umlauts"]
    curve = made_curve()
    known = curve.sources[0]

    def told(*characters: float) -> str | None:
        found = tuple(known.model_copy(update={"characters_per_token": count}) for count in characters)
        return unlike(result, curve.model_copy(update={"sources": found}))

    assert told() is None, "the curve does not say"
    assert told(0.6, 1.1) is None
    said = told(1.0)
    assert said.startswith("umlauts has 0.5 characters per token, the policy was measured on text of 1.0 to 1.0")
    assert told(0.4, 0.5).startswith("plain has 1.0 characters")
    assert torch.isfinite(torch.tensor([source.nats for source in result.sources])).all()
