"""Where a reply's thinking ends and its answer begins."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.serving import with_template
from helpers.thinking import OPEN, TEMPLATE, follow
from solm.core.errors import BudgetError
from solm.runtime.prompts import TemplateVariableError
from solm.runtime.sampling import Sampler
from solm.runtime.thinking import FORMATS, ThinkingReader, marks_of

MARKS = FORMATS[0]
PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "</", "ink>", "a", " ", "\n", "é"]), max_size=12)


def split(text: str, opened: bool) -> tuple[str, str]:
    """What the reader does, said at once."""
    found = re.match(r"\s*<think>", text)
    if found is None and not opened:
        return "", text
    thought, _, answer = text[found.end() if found else 0 :].partition("</think>")
    return thought.strip(), answer.lstrip()


@given(PIECES, st.booleans(), st.integers(1, 5))
def test_pieces_of_any_length_are_split_alike(pieces, opened, size):
    text = "".join(pieces)
    reader, thought, answer = ThinkingReader(MARKS, opened), "", ""
    for start in range(0, len(text), size):
        more = reader.push(text[start : start + size])
        thought, answer = thought + more[0], answer + more[1]
    more = reader.push("", last=True)
    assert (thought + more[0], answer + more[1]) == split(text, opened)


def test_formats_are_found_in_templates():
    assert marks_of(TEMPLATE) == MARKS
    assert marks_of("{{ '[THINK]' + m.thinking + '[/THINK]' }}").begins == "[THINK]"
    assert marks_of("{{ messages }} <think>") is None
    assert marks_of(None) is None


@pytest.mark.parametrize(
    ("template", "told", "thinking"),
    [(TEMPLATE, {}, False), (OPEN, {}, True), (TEMPLATE, {"enable_thinking": False}, False)],
)
def test_the_end_of_a_prompt_says_whether_the_reply_thinks(byte_tokenizer, template, told, thinking):
    tokenizer = with_template(byte_tokenizer, template)
    messages = [{"role": "user", "content": "What does <think> mean?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **told)
    assert ThinkingReader.of(tokenizer, tokenizer.encode(text)).thinking is thinking
    assert ThinkingReader.of(with_template(byte_tokenizer), tokenizer.encode(text)) is None


def test_a_reply_under_a_grammar_may_begin_to_think(tiny_lm):
    tokenizer = with_template(tiny_lm.tokenizer, TEMPLATE)
    tokenizer.add_tokens(["<think>", "</think>"])
    reader = ThinkingReader.of(tokenizer, tokenizer.encode("assistant\n"))
    assert reader.opening == tokenizer.convert_tokens_to_ids("<think>")
    assert ThinkingReader.of(tokenizer, tokenizer.encode("<think>\n\n</think>\n\n")).opening is None

    class OnlyZero:
        complete, taken = False, 0

        def masked(self, logits):
            return np.where(np.arange(len(logits)) == 0, logits, -np.inf)

        def add(self, token):
            self.taken += 1

    sampler = Sampler(0, constraint=OnlyZero())
    sampler.opening = 5
    logits = np.arange(9.0)
    assert sampler.choose(sampler.possible(logits)) == 5
    assert (sampler.constraint.taken, sampler.opening) == (0, None)
    assert sampler.choose(sampler.possible(logits)) == 0
    assert sampler.constraint.taken == 1


def test_generate_gives_thinking_apart(tiny_lm, monkeypatch):
    tiny_lm.tokenizer = with_template(tiny_lm.tokenizer, OPEN)
    follow(monkeypatch, "Hm.\n</think>\n\nNo.")
    told = {"chat_template_kwargs": {"enable_thinking": False}}
    reply = tiny_lm.generate("Is it?", max_new_tokens=60, budget="keep=0.9", reasoning_budget="keep=0.6")
    assert (reply.reasoning, reply.text) == ("Hm.", "No.")
    assert 0.6 < reply.compute.requested["net"] < 0.9
    assert reply.as_dict()["reasoning"] == "Hm."
    stream = tiny_lm.stream("Is it?", max_new_tokens=60)
    assert "".join(token.text for token in stream).startswith("Hm.\n</think>")
    assert stream.reply.text == "No."
    assert tiny_lm.generate("Is it?", max_new_tokens=60, stop_strings=["Hm"]).text == "No."
    plain = tiny_lm.generate("Is it?", max_new_tokens=60, **told)
    assert (plain.reasoning, plain.text) == ("", "Hm.\n</think>\n\nNo.")
    assert tiny_lm.generate(["a", "b"], max_new_tokens=60, **told)[1].reasoning == ""


def test_what_a_model_lacks_is_refused(tiny_lm):
    with pytest.raises(BudgetError, match="reasoning_budget"):
        tiny_lm.generate("hi", reasoning_budget=0.7)
    with pytest.raises(TemplateVariableError, match="enable_thinking"):
        tiny_lm.generate("hi", chat_template_kwargs={"enable_thinking": True})
    tiny_lm.tokenizer = with_template(tiny_lm.tokenizer, TEMPLATE)
    with pytest.raises(TemplateVariableError, match="of such variables it reads enable_thinking"):
        tiny_lm.generate("hi", chat_template_kwargs={"enable_thinkin": True})
    with pytest.raises(TemplateVariableError, match="prompt 0: chat_template_kwargs"):
        tiny_lm.generate(["a", "b"], chat_template_kwargs={"x": 1})
    with pytest.raises(BudgetError, match="dense"):
        tiny_lm.generate("hi", policy="dense", reasoning_budget=0.7)
