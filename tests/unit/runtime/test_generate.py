"""Generation: dense equals the stock model's own, budgets are spent, several prompts are answered as each alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

import solm
from helpers.models import tiny_model
from solm.core.actions import AXES
from solm.core.errors import BudgetError, ContextLengthError, DataError, SolmError
from solm.runtime.sampling import REPLY_PENALTIES, SUPPORTED, Sampler

SHARES = solm.Budget(attention=0.6, mlp=0.8, bits=10)
PROMPTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Why?",
    "How many pages does a step read? " * 4,
    "x " * 70,
]


def prompt(length: int = 100) -> torch.Tensor:
    return torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(4))


def test_dense_greedy_equals_transformers_generate(tiny_lm):
    expected = tiny_lm.model.generate(prompt(), max_new_tokens=20, do_sample=False)[0, 100:]
    reply = tiny_lm.generate(prompt(), max_new_tokens=20)
    assert [token.id for token in reply.tokens] == expected.tolist()
    assert reply.compute.realised["net"] == 1


def test_sampling_is_repeatable_and_follows_its_seed(tiny_lm):
    def ids(seed):
        return [t.id for t in tiny_lm.generate(prompt(), max_new_tokens=12, temperature=2.0, seed=seed).tokens]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_top_k_of_one_and_temperature_0_are_greedy(tiny_lm):
    greedy = tiny_lm.generate(prompt(), max_new_tokens=8)
    for options in ({"top_k": 1, "seed": 9}, {"temperature": 0.0, "seed": np.int64(3)}):
        assert tiny_lm.generate(prompt(), max_new_tokens=8, **options).tokens == greedy.tokens


@pytest.mark.parametrize("name", ["policy", "static"])
def test_the_budget_is_spent_and_every_token_traced(policy_lm, name):
    tokens = 40
    reply = policy_lm.generate(prompt(), budget=SHARES, policy=name, max_new_tokens=tokens, eos_token_id=-1)
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
    told = {"text", "reasoning", "tokens", "requested", "realised", "loss_verified"}
    assert set(content) == told | {"guessed_tokens", "accepted_tokens", "guesses", "tokens_per_pass", "energy_joules"}
    assert content["text"] == policy_lm.tokenizer.decode([t.id for t in reply.tokens], skip_special_tokens=True)


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
def test_a_supported_option_changes_what_is_chosen_as_in_transformers(tiny_lm, options):
    """What transformers chooses the first token by and what we choose it by are the same."""
    ids = prompt()
    logits = tiny_lm.model(ids).logits[0, -1].numpy(force=True)
    sampled = {"do_sample": any(name in options for name in ("temperature", "top_p", "top_k", "min_p"))} | options
    theirs = tiny_lm.model.generate(
        ids, max_new_tokens=9, min_new_tokens=sampled.pop("min_new_tokens", None), return_dict_in_generate=True,
        output_scores=True, **sampled,
    )  # fmt: skip
    scores = theirs.scores[0][0]
    ends = scores.double().softmax(0).cumsum(0).numpy()
    for seed in range(20):
        chosen, place = Sampler.of(tiny_lm, ids, seed, options).choose(logits), np.random.default_rng(seed).random()
        if sampled["do_sample"]:
            assert scores[chosen] > -torch.inf
            assert ends[chosen - 1] * (chosen > 0) - 1e-5 <= place <= ends[chosen] + 1e-5
        else:
            assert chosen == int(scores.argmax())


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


def test_mistakes_are_one_clear_error(tiny_lm, value_lm):
    for options, error, message in [
        ({"max_new_tokens": 0}, SolmError, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": "3"}, SolmError, "max_new_tokens must be a whole number of at least 1, got '3'"),
        ({"max_new_tokens": 500}, ContextLengthError, "100 and 500 new tokens exceed this model's context of 512"),
        ({"seed": "x"}, SolmError, "seed must be a whole number, got 'x'"),
        ({"stop_strings": 5}, SolmError, "stop_strings must be texts that are not empty, got 5"),
        ({"grammar": "yes|no"}, SolmError, r"grammar must be a solm\.Grammar"),
        ({"policy": "fast"}, SolmError, "unknown policy 'fast'; choose policy, dense, static"),
        ({"num_beams": 4}, SolmError, "generation option 'num_beams' is not supported; supported are do_sample"),
        ({"repetition_penalty": -1.0}, SolmError, "generation options: .*penalty"),
        ({"budget": 0.05}, BudgetError, "0.05 is unreachable: at 1[0-9]+ tokens this model reads"),
        ({"budget": True}, BudgetError, "a budget is a number, a text or a Budget, got True"),
        ({"budget": "keep=0.9", "policy": "dense"}, BudgetError, "needs another policy than dense"),
    ]:
        with pytest.raises(error, match=message):
            value_lm.generate(prompt(), **options)
    with pytest.raises(DataError, match="the prompt is empty"):
        tiny_lm.generate("  ")
    with solm.attach(tiny_model("llama", torch.float32)) as bare, pytest.raises(SolmError, match="needs a tokenizer"):
        bare.generate("hello")


def test_a_stream_that_is_closed_keeps_what_it_has(value_lm):
    whole = value_lm.generate(prompt(), budget="keep=0.8", max_new_tokens=12, eos_token_id=-1)
    stream = value_lm.stream(prompt(), budget="keep=0.8", max_new_tokens=12, eos_token_id=-1)
    tokens = [next(stream) for _ in range(5)]
    stream.close()
    assert list(stream) == []
    assert stream.reply.tokens == tokens == whole.tokens[:5]
    assert stream.reply.compute.requested == whole.compute.requested


@pytest.mark.parametrize("kind", ["value_lm", "cpu_lm"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "repetition_penalty": 1.1}])
def test_every_reply_is_what_it_would_be_alone(kind, options, request):
    lm = request.getfixturevalue(kind)
    budget = "keep=0.7"
    together = lm.generate(PROMPTS, budget=budget, max_new_tokens=30, seed=5, **options)
    for number, (prompt, reply) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = lm.generate(prompt, budget=budget, max_new_tokens=30, seed=5 + number, **options)
        assert [token.id for token in reply.tokens] == [token.id for token in alone.tokens]
        assert [token.action for token in reply.tokens] == [token.action for token in alone.tokens]
        assert reply.text == alone.text
        assert reply.compute.requested == alone.compute.requested
        assert reply.compute.realised == pytest.approx(alone.compute.realised)


def test_rows_that_end_early_leave(tiny_lm):
    tiny_lm.model.generation_config.eos_token_id = None
    whole = [[t.id for t in reply.tokens] for reply in tiny_lm.generate(PROMPTS, max_new_tokens=20)]
    stop = whole[2][4]
    assert any(stop not in ids for ids in whole)
    replies = tiny_lm.generate(PROMPTS, max_new_tokens=20, eos_token_id=stop)
    for ids, reply in zip(whole, replies, strict=True):
        expected = ids[: ids.index(stop) + 1] if stop in ids else ids
        assert [token.id for token in reply.tokens] == expected


def test_every_prompt_may_have_a_budget_of_its_own(value_lm):
    budgets = ["keep=0.6", None, "keep=0.9", "attention=0.5"]
    replies = value_lm.generate([PROMPTS[0]] * 4, budget=budgets, max_new_tokens=30, min_new_tokens=30)
    for budget, reply in zip(budgets, replies, strict=True):
        assert (
            reply.compute.requested == value_lm.generate(PROMPTS[0], budget=budget, max_new_tokens=30).compute.requested
        )
    spent = [reply.compute.realised["net"] for reply in replies]
    assert spent[1] == 1
    assert spent[0] == pytest.approx(0.6, abs=0.05)
    assert spent[0] < spent[2] < 1


def test_mistakes_name_the_prompt_before_anything_is_generated(value_lm, monkeypatch):
    monkeypatch.setattr(type(value_lm), "session", lambda *_: pytest.fail("a prompt was read"))
    for options, error, message in [
        ({"budget": ["keep=0.8"] * 3}, BudgetError, "there are 3 budgets for 4 prompts"),
        ({"budget": [None, None, "keep=0.01", None]}, BudgetError, "prompt 2: budget 0.01 is unreachable"),
        ({"max_new_tokens": 400}, ContextLengthError, "prompt 0: a prompt of 1[0-9]+ and 400 new tokens exceed"),
        ({"batch_size": 0}, SolmError, "batch_size must be at least 1, got 0"),
        ({"streamer": TextStreamer(value_lm.tokenizer)}, SolmError, "a streamer takes one prompt, got 4"),
        ({"tempreature": 1}, SolmError, "prompt 0: generation option 'tempreature' is not supported"),
    ]:
        with pytest.raises(error, match=message):
            value_lm.generate(PROMPTS, **options)
    with pytest.raises(SolmError, match="token 259 is not among the model's 259"):
        value_lm.generate(torch.tensor([[5, 259]]))
    with pytest.raises(SolmError, match="token -1 is not among"):
        value_lm.generate(torch.tensor([[5, -1]]))


def test_a_streamer_of_transformers_gets_every_token(tiny_lm, capsys):
    text = tiny_lm.generate(PROMPTS[0], max_new_tokens=10).text
    streamer = TextIteratorStreamer(tiny_lm.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10)
    tiny_lm.generate(PROMPTS[0], max_new_tokens=10, streamer=streamer)
    assert "".join(streamer) == text
    tiny_lm.generate(PROMPTS[0], max_new_tokens=10, streamer=TextStreamer(tiny_lm.tokenizer))
    assert capsys.readouterr().out.startswith(PROMPTS[0])


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (PROMPTS[0], {"budget": 7}),
        (PROMPTS[:2], {}),
        (torch.tensor([[5, 259]]), {}),
    ],
)
def test_a_streamer_hears_the_end_once_after_a_mistake(tiny_lm, prompt, options):
    """Else the thread that reads it would wait for ever."""
    streamer = TextIteratorStreamer(tiny_lm.tokenizer, timeout=1)
    with pytest.raises(SolmError):
        tiny_lm.generate(prompt, streamer=streamer, **options)
    assert list(streamer) == [""]
    assert streamer.text_queue.empty()
