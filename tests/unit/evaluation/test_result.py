"""What a model makes of each source, and whether that is like the text that a policy was measured on."""

import numpy as np

from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.result import shares_of, text_facts
from solm.evaluation.texts import TokenStream, stream_of

SETTINGS = EvaluationSettings(budgets=(0.8,), texts=5, context=90, length=20)


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
