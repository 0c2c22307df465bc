"""Generation: dense equals the stock model's own, budgets are spent and traced, options are transformers'."""

import pytest
import torch

import solm
from solm.core.errors import BudgetError, ContextLengthError, DataError, SolmError


def prompt(length: int = 100) -> torch.Tensor:
    return torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(4))


def test_dense_greedy_equals_transformers_generate(tiny_lm):
    expected = tiny_lm.model.generate(prompt(), max_new_tokens=20, do_sample=False)[0, 100:]
    reply = tiny_lm.generate(prompt(), max_new_tokens=20)
    assert [token.id for token in reply.tokens] == expected.tolist()
    assert reply.compute.realised["net"] == 1


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [7]}]
)
def test_processors_are_transformers_own(tiny_lm, options):
    expected = tiny_lm.model.generate(prompt(), max_new_tokens=12, do_sample=False, **options)[0, 100:]
    assert [token.id for token in tiny_lm.generate(prompt(), max_new_tokens=12, **options).tokens] == expected.tolist()


def test_sampling_is_repeatable_and_follows_its_seed(tiny_lm):
    def ids(seed):
        return [t.id for t in tiny_lm.generate(prompt(), max_new_tokens=12, temperature=2.0, seed=seed).tokens]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_top_k_of_one_is_greedy(tiny_lm):
    greedy = tiny_lm.generate(prompt(), max_new_tokens=8)
    assert tiny_lm.generate(prompt(), max_new_tokens=8, top_k=1, seed=9).tokens == greedy.tokens


@pytest.mark.parametrize("policy", ["policy", "static", "random"])
def test_the_budget_is_spent_and_every_token_traced(policy_lm, policy):
    tokens = 40
    reply = policy_lm.generate(prompt(), budget=0.7, policy=policy, max_new_tokens=tokens, min_new_tokens=tokens)
    assert len(reply.tokens) == tokens
    assert [token.controllable for token in reply.tokens] == [False] + [True] * (tokens - 1)
    for axis, share in reply.compute.realised.items():
        counted = [token.realised[axis] for token in reply.tokens[1:]] if axis != "net" else []
        assert not counted or share == pytest.approx(sum(counted) / len(counted))
        # The level gap of attention is 0.9 at most, and its floor falls as the context grows.
        assert share == pytest.approx(reply.compute.requested[axis], abs=0.9 / tokens)
    assert {token.action for token in reply.tokens} > {"k100-s100-q16"}
    content = reply.as_dict()
    assert set(content) == {"text", "tokens", "requested", "realised"}
    assert content["text"] == policy_lm.tokenizer.decode([t.id for t in reply.tokens], skip_special_tokens=True)


def test_per_axis_budgets_hold_each_axis(policy_lm):
    budget = solm.Budget(attention=1.0, mlp=0.8, bits=16)
    reply = policy_lm.generate(prompt(), budget=budget, max_new_tokens=50, min_new_tokens=50)
    assert reply.compute.realised["attention"] == 1
    assert reply.compute.realised["bits"] == 1
    assert reply.compute.realised["mlp"] == pytest.approx(0.8, abs=0.02)


def test_stream_is_the_reply_in_pieces(policy_lm):
    reply = policy_lm.generate(prompt(), budget=0.7, max_new_tokens=15)
    assert list(policy_lm.stream(prompt(), budget=0.7, max_new_tokens=15)) == reply.tokens


def test_what_a_tokenizer_returns_can_be_passed_on(tiny_lm):
    inputs = tiny_lm.tokenizer(
        ["some words"], padding="max_length", max_length=30, padding_side="left", return_tensors="pt"
    )
    padded = tiny_lm.generate(**inputs, max_new_tokens=5)
    assert padded.tokens == tiny_lm.generate(inputs.input_ids[:, 20:], max_new_tokens=5).tokens
    with pytest.raises(DataError, match=r"one row of token ids \[1, C\], got shape \[2, 30\]"):
        tiny_lm.generate(input_ids=torch.ones(2, 30, dtype=torch.long))
    with pytest.raises(DataError, match="give a prompt or input_ids"):
        tiny_lm.generate()


def test_stops_at_the_end_token(tiny_lm):
    first = tiny_lm.generate(prompt(), max_new_tokens=3).tokens
    tiny_lm.model.generation_config.eos_token_id = first[1].id
    assert len(tiny_lm.generate(prompt(), max_new_tokens=3).tokens) == 2


def test_bad_requests_are_one_clear_error(tiny_lm, policy_lm):
    for options, error, message in [
        ({"max_new_tokens": 0}, SolmError, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 500}, ContextLengthError, "100 and 500 new tokens exceed this model's context of 512"),
        ({"policy": "fast"}, SolmError, "unknown policy 'fast'; choose policy, dense, static, random"),
        ({"tempreature": 1}, SolmError, "generation option 'tempreature' is unknown"),
        ({"budget": 0.05}, BudgetError, "0.05 is unreachable"),
    ]:
        with pytest.raises(error, match=message):
            policy_lm.generate(prompt(), **options)
    with pytest.raises(DataError, match="the prompt is empty"):
        tiny_lm.generate("  ")
    with solm.attach(torch_model()) as bare, pytest.raises(SolmError, match="text needs a tokenizer"):
        bare.generate("hello")


def torch_model():
    from helpers.models import tiny_model

    return tiny_model("llama", torch.float32)
