"""transformers' own `generate` with our decoding loop: dense it gives the same, under a budget it spends it."""

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
    set_seed,
)

import solm
from helpers.models import tiny_model
from helpers.policies import under_values
from solm.core.errors import BudgetError, SolmError, UnsupportedModelError

IDS = torch.randint(3, 259, (3, 90), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[0, :20] = 0


@pytest.fixture
def model():
    return tiny_model("llama", torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.5}, {"do_sample": False, "eos_token_id": 70},
        {"do_sample": False, "min_new_tokens": 12}, {"do_sample": False, "max_length": 99, "max_new_tokens": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 3])
def test_dense_it_is_what_transformers_generates(model, options, rows):
    given = {"input_ids": IDS[:rows], "attention_mask": MASK[:rows], "max_new_tokens": 12, **options}
    given = {name: value for name, value in given.items() if value is not None}
    expected = model.generate(**given)
    assert torch.equal(model.generate(**given, custom_generate=solm.custom_generate()), expected)
    assert torch.equal(model.generate(**given), expected), "the model is plain again"


def test_it_draws_from_the_global_generator(model):
    def drawn(seed):
        set_seed(seed)
        return model.generate(
            input_ids=IDS[:1], do_sample=True, num_return_sequences=4, max_new_tokens=8,
            custom_generate=solm.custom_generate(),
        )  # fmt: skip

    assert torch.equal(drawn(1), drawn(1))
    assert len({tuple(row) for row in drawn(1).tolist()}) > 1
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_an_attached_model_decodes_under_its_policy_and_budget(model, byte_tokenizer, backend, tmp_path):
    with solm.attach(model, tokenizer=byte_tokenizer) as lm:
        under_values(lm, solm.SparsityConfig(window=32)).trained.save_pretrained(tmp_path)
    options = {} if backend == "torch" else {"backend": "cpu", "precision": "int8"}
    with solm.attach(model, tmp_path, byte_tokenizer, **options) as lm:
        expected = lm.generate(IDS, attention_mask=MASK, budget="keep=0.6", max_new_tokens=15, eos_token_id=-1)
        made = model.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=15, do_sample=False, eos_token_id=-1,
            custom_generate=lm.custom_generate("keep=0.6"),
        )  # fmt: skip
        assert made[:, IDS.shape[1] :].tolist() == [[token.id for token in reply.tokens] for reply in expected]
        assert all(reply.compute.realised["net"] < 0.7 for reply in expected)
    if backend == "torch":
        alone = model.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=15, do_sample=False, eos_token_id=-1,
            custom_generate=solm.custom_generate(tmp_path, "keep=0.6"),
        )  # fmt: skip
        assert torch.equal(alone, made)


def test_processors_and_criteria_of_the_caller_are_carried_out(model):
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.where(torch.arange(scores.shape[-1]) == 33, -torch.inf)

    found = model.generate(
        input_ids=IDS[:2],
        max_new_tokens=5,
        logits_processor=[Only()],
        custom_generate=solm.custom_generate(budget="mlp=0.7"),
    )
    assert found[:, 90:].tolist() == [[33] * 5] * 2
    found = model.generate(
        input_ids=IDS[:1], max_new_tokens=50, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0)]),
        custom_generate=solm.custom_generate(),
    )  # fmt: skip
    assert found.shape[1] == 91


def test_a_reply_ends_at_a_stop_string(model, byte_tokenizer):
    whole = model.generate(input_ids=IDS[:1], max_new_tokens=20, do_sample=False)
    text = byte_tokenizer.decode(whole[0, 90:])
    stop = next(text[at] for at in range(3, len(text)) if text[at].isascii() and text[at].isprintable())
    ends = StoppingCriteriaList([StopStringCriteria(byte_tokenizer, [stop])])
    given = {"input_ids": IDS[:1], "max_new_tokens": 20, "do_sample": False, "stopping_criteria": ends}
    found = model.generate(**given, custom_generate=solm.custom_generate())
    assert torch.equal(found, model.generate(**given))
    assert found.shape[1] < whole.shape[1]


def test_what_it_cannot_do_is_refused(model, byte_tokenizer):
    loop = solm.custom_generate(budget="mlp=0.7")
    for options, message in [
        ({"num_beams": 3}, "generation option 'num_beams' is not supported under a budget"),
        ({"return_dict_in_generate": True}, "'return_dict_in_generate' is not supported"),
    ]:
        with pytest.raises(SolmError, match=message):
            model.generate(input_ids=IDS, max_new_tokens=4, custom_generate=loop, **options)
    with pytest.raises(BudgetError, match="budget 7 is out of range"):
        model.generate(input_ids=IDS, max_new_tokens=4, custom_generate=solm.custom_generate(budget=7))
    streamer = TextIteratorStreamer(byte_tokenizer, timeout=1)
    streaming = solm.custom_generate(streamer=streamer)
    with pytest.raises(SolmError, match="a streamer takes one prompt, got 3"):
        model.generate(input_ids=IDS, max_new_tokens=4, custom_generate=streaming)
    with solm.attach(model) as lm:
        for attaching in (loop, streaming):
            with pytest.raises(UnsupportedModelError, match="attached already"):
                model.generate(input_ids=IDS, max_new_tokens=4, custom_generate=attaching)
        with pytest.raises(SolmError, match="a streamer takes one prompt, got 3"):
            model.generate(input_ids=IDS, max_new_tokens=4, custom_generate=lm.custom_generate(streamer=streamer))
        assert [list(streamer) for _ in range(3)] == [[""]] * 3, "one end for each mistake"
        other = tiny_model("llama", torch.float32)
        with pytest.raises(SolmError, match="belongs to another model"):
            other.generate(input_ids=IDS, max_new_tokens=4, custom_generate=lm.custom_generate())
