"""Generation: dense equals the stock model's own, budgets are spent and traced, options are transformers'."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model
from solm.core.actions import AXES
from solm.core.errors import BudgetError, ContextLengthError, DataError, SolmError
from solm.runtime.sampling import REPLY_PENALTIES, SUPPORTED, Sampler


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


def test_a_seed_may_be_numpys(tiny_lm):
    found = [tiny_lm.generate(prompt(), max_new_tokens=4, temperature=1.0, seed=seed) for seed in (7, np.int64(7))]
    assert [token.id for token in found[0].tokens] == [token.id for token in found[1].tokens]


def test_top_k_of_one_is_greedy(tiny_lm):
    greedy = tiny_lm.generate(prompt(), max_new_tokens=8)
    assert tiny_lm.generate(prompt(), max_new_tokens=8, top_k=1, seed=9).tokens == greedy.tokens


@pytest.mark.parametrize("name", ["policy", "static", "random"])
def test_the_budget_is_spent_and_every_token_traced(policy_lm, name):
    tokens = 40
    reply = policy_lm.generate(prompt(), budget="keep=0.7", policy=name, max_new_tokens=tokens, min_new_tokens=tokens)
    assert len(reply.tokens) == tokens
    assert [token.controllable for token in reply.tokens] == [
        dict.fromkeys(AXES, place > 0) for place in range(tokens)
    ]  # fmt: skip
    for axis in (*AXES, "net"):
        share = reply.compute.realised[axis]
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
    reply = policy_lm.generate(prompt(), budget="keep=0.7", max_new_tokens=15)
    assert list(policy_lm.stream(prompt(), budget="keep=0.7", max_new_tokens=15)) == reply.tokens


def test_what_a_tokenizer_returns_can_be_passed_on(tiny_lm):
    inputs = tiny_lm.tokenizer(
        ["some words"], padding="max_length", max_length=30, padding_side="left", return_tensors="pt"
    )
    padded = tiny_lm.generate(**inputs, max_new_tokens=5)
    assert padded.tokens == tiny_lm.generate(inputs.input_ids[:, 20:], max_new_tokens=5).tokens
    with pytest.raises(DataError, match="stream takes one prompt, got 2"):
        tiny_lm.stream(input_ids=torch.ones(2, 30, dtype=torch.long))
    with pytest.raises(DataError, match="give a prompt or input_ids"):
        tiny_lm.generate()


def test_stops_at_the_end_token(tiny_lm):
    first = tiny_lm.generate(prompt(), max_new_tokens=3).tokens
    tiny_lm.model.generation_config.eos_token_id = first[1].id
    assert len(tiny_lm.generate(prompt(), max_new_tokens=3).tokens) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_beams", 4), ("num_return_sequences", 2), ("constraints", []), ("force_words_ids", [[5]]),
        ("assistant_early_exit", 1), ("prompt_lookup_num_tokens", 3), ("penalty_alpha", 0.6), ("guidance_scale", 2.0),
        ("dola_layers", "high"), ("diversity_penalty", 0.5), ("length_penalty", 2.0), ("early_stopping", True),
        ("max_time", 1.0), ("token_healing", True), ("watermarking_config", None), ("forced_eos_token_id", 2),
        ("encoder_repetition_penalty", 2.0), ("use_cache", False), ("output_scores", True),
        ("cache_implementation", "static"),
    ],
)  # fmt: skip
def test_options_that_are_not_carried_out_are_refused_by_name(tiny_lm, option, value):
    with pytest.raises(SolmError, match=f"generation option '{option}' is not supported; supported are do_sample"):
        tiny_lm.generate(prompt(), max_new_tokens=2, **{option: value})


OPTIONS = [
    {"do_sample": True}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3},
    {"do_sample": True, "top_h": 0.4}, {"do_sample": True, "typical_p": 0.4},
    {"do_sample": True, "epsilon_cutoff": 0.01}, {"do_sample": True, "eta_cutoff": 0.01},
    {"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[7]]}, {"sequence_bias": {(7,): 50.0}}, {"suppress_tokens": [7]}, {"begin_suppress_tokens": [7]},
    {"min_length": 105}, {"min_new_tokens": 5}, {"exponential_decay_length_penalty": (2, 9.0)},
    {"remove_invalid_values": True}, {"renormalize_logits": True}, {"eos_token_id": 7}, {"pad_token_id": 0},
]  # fmt: skip


def test_every_supported_option_is_tried():
    assert {name for options in OPTIONS for name in options} == set(SUPPORTED) - set(REPLY_PENALTIES)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_supported_option_changes_scores_as_in_transformers(tiny_lm, options):
    """What transformers chooses the first token by and what we choose it by are the same."""
    ids = prompt()
    logits = tiny_lm.model(ids).logits[0, -1]
    sampled = {"do_sample": any(name in options for name in ("temperature", "top_p", "top_k", "min_p"))} | options
    theirs = tiny_lm.model.generate(
        ids, max_new_tokens=9, min_new_tokens=sampled.pop("min_new_tokens", None), return_dict_in_generate=True,
        output_scores=True, **sampled,
    )  # fmt: skip
    scores = Sampler.of(tiny_lm, ids, 0, options).scores(logits)
    torch.testing.assert_close(torch.from_numpy(scores), theirs.scores[0][0], rtol=1e-4, atol=1e-4)


def test_stop_strings_end_a_reply_and_stay_in_it(tiny_lm):
    whole = tiny_lm.generate(prompt(), max_new_tokens=20)
    text = "".join(token.text for token in whole.tokens)
    stop = next(text[at : at + 2] for at in range(4, len(text)) if "\ufffd" not in text[at : at + 2])
    for given in (stop, ["never said", stop]):
        reply = tiny_lm.generate(prompt(), max_new_tokens=20, stop_strings=given)
        assert stop in "".join(token.text for token in reply.tokens)
        assert stop not in "".join(token.text for token in reply.tokens[:-1])
        assert reply.tokens == whole.tokens[: len(reply.tokens)]
        assert len(reply.tokens) < len(whole.tokens)
    with pytest.raises(SolmError, match="stop_strings must be texts that are not empty"):
        tiny_lm.generate(prompt(), stop_strings=[""])


def test_max_length_counts_the_prompt(tiny_lm):
    reply = tiny_lm.generate(prompt(), max_length=104)
    assert reply.tokens == tiny_lm.generate(prompt(), max_new_tokens=4).tokens
    with pytest.raises(SolmError, match="max_length must be above the 100 tokens of the prompt, got 100"):
        tiny_lm.generate(prompt(), max_length=100)
    with pytest.raises(SolmError, match="max_new_tokens and max_length say the same thing twice"):
        tiny_lm.generate(prompt(), max_length=104, max_new_tokens=4)


def test_temperature_0_is_greedy(tiny_lm):
    greedy = tiny_lm.generate(prompt(), max_new_tokens=8)
    assert tiny_lm.generate(prompt(), max_new_tokens=8, temperature=0.0, seed=3).tokens == greedy.tokens


def test_bad_requests_are_one_clear_error(tiny_lm, policy_lm):
    for options, error, message in [
        ({"max_new_tokens": 0}, SolmError, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 500}, ContextLengthError, "100 and 500 new tokens exceed this model's context of 512"),
        ({"policy": "fast"}, SolmError, "unknown policy 'fast'; choose policy, dense, static, random"),
        ({"tempreature": 1}, SolmError, "generation option 'tempreature' is unknown"),
        ({"repetition_penalty": -1.0}, SolmError, "generation options: .*penalty"),
        ({"budget": 0.05}, BudgetError, "0.05 is unreachable: at 1[0-9]+ tokens this model reads"),
    ]:
        with pytest.raises(error, match=message):
            policy_lm.generate(prompt(), **options)
    with pytest.raises(DataError, match="the prompt is empty"):
        tiny_lm.generate("  ")
    with solm.attach(torch_model()) as bare, pytest.raises(SolmError, match="text needs a tokenizer"):
        bare.generate("hello")


def torch_model():
    return tiny_model("llama", torch.float32)


@pytest.mark.parametrize("name", ["value_lm", "cpu_lm"])
def test_threads_generate_what_one_would(name, request):
    lm = request.getfixturevalue(name)
    orders = [(100 + 7 * index, f"keep={0.7 + 0.05 * (index % 4)}") for index in range(8)]

    def ids(order):
        length, budget = order
        return [token.id for token in lm.generate(prompt(length), budget=budget, max_new_tokens=24).tokens]

    alone = [ids(order) for order in orders]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ids, orders)) == alone
    assert len({tuple(said) for said in alone}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 3.5}, "max_new_tokens must be a whole number of at least 1, got 3.5"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be a whole number of at least 1, got '3'"),
        ({"max_length": "9"}, "max_length must be above the 2 tokens of the prompt, got '9'"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"stop_strings": 5}, "stop_strings must be texts that are not empty, got 5"),
        ({"grammar": "yes|no"}, r"grammar must be a solm\.Grammar, such as Grammar\.regex\(\.\.\.\), got str"),
        ({"budget": True}, "a budget is a number, a text or a Budget, got True"),
        ({"budget": {"mlp": "much"}}, "'much' is not a number"),
    ],
)  # fmt: skip
def test_options_of_a_wrong_type_are_refused_in_one_line(tiny_lm, options, message):
    with pytest.raises(SolmError, match=message):
        tiny_lm.generate([5, 6], **options)
