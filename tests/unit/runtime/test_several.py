"""Several prompts at once: every reply is what it would be alone, in the order of the prompts."""

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

from solm.core.errors import BudgetError, ContextLengthError, SolmError

PROMPTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Why?",
    "How many pages does a step read? " * 4,
    "x " * 70,
]


@pytest.mark.parametrize("kind", ["tiny_lm", "value_lm", "policy_lm", "cpu_lm"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "repetition_penalty": 1.1}])
def test_every_reply_is_what_it_would_be_alone(kind, options, request):
    lm = request.getfixturevalue(kind)
    budget = "mlp=0.7" if kind == "tiny_lm" else "keep=0.7"
    together = lm.generate(PROMPTS, budget=budget, max_new_tokens=30, seed=5, **options)
    for number, (prompt, reply) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = lm.generate(prompt, budget=budget, max_new_tokens=30, seed=5 + number, **options)
        assert [token.id for token in reply.tokens] == [token.id for token in alone.tokens]
        assert [token.action for token in reply.tokens] == [token.action for token in alone.tokens]
        assert reply.text == alone.text
        assert reply.compute.requested == alone.compute.requested
        assert reply.compute.realised == pytest.approx(alone.compute.realised)


def test_rows_of_a_tokenizer_with_padding(tiny_lm):
    inputs = tiny_lm.tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    replies = tiny_lm.generate(**inputs, max_new_tokens=6)
    assert [r.tokens for r in replies] == [r.tokens for r in tiny_lm.generate(PROMPTS, max_new_tokens=6)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_replies_do_not_depend_on_how_many_decode_together(value_lm, batch_size):
    read, session = [], type(value_lm.session())
    step = session.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            session, "step", lambda self, tokens, **rest: (read.append(len(tokens)), step(self, tokens, **rest))[1]
        )
        found = value_lm.generate(PROMPTS, budget="keep=0.8", max_new_tokens=12, batch_size=batch_size)
    assert max(read) == min(batch_size, len(PROMPTS))
    expected = value_lm.generate(PROMPTS, budget="keep=0.8", max_new_tokens=12)
    assert [[t.id for t in reply.tokens] for reply in found] == [[t.id for t in reply.tokens] for reply in expected]


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
        ({"max_length": 100}, SolmError, "prompt 0: max_length must be above the 1[0-9]+ tokens of the prompt"),
        ({"max_new_tokens": 400}, ContextLengthError, "prompt 0: a prompt of 1[0-9]+ and 400 new tokens exceed"),
        ({"batch_size": 0}, SolmError, "batch_size must be at least 1, got 0"),
        ({"streamer": TextStreamer(value_lm.tokenizer)}, SolmError, "a streamer takes one prompt, got 4"),
        ({"tempreature": 1}, SolmError, "prompt 0: generation option 'tempreature' is unknown"),
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
        (PROMPTS[0], {"budget": [0.7, 0.8]}),
        (PROMPTS[0], {"batch_size": 0}),
        (PROMPTS[:2], {}),
        (torch.zeros(1, 0, dtype=torch.int64), {}),
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
