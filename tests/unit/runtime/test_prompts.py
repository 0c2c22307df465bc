"""What a model can be asked with, and what is refused in one line."""

import numpy as np
import pytest
import torch

from solm.core.errors import DataError, SolmError
from solm.runtime.prompts import encode, token_rows

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
)
USER = {"role": "user", "content": "hi"}


@pytest.fixture
def templated(byte_tokenizer, monkeypatch):
    monkeypatch.setattr(byte_tokenizer, "chat_template", TEMPLATE)
    return byte_tokenizer


def texts(tokenizer, rows) -> list[str]:
    return [tokenizer.decode(row[0]) for row in rows]


def test_text_and_conversations_go_through_the_template(templated):
    brief = {"role": "system", "content": "Be brief."}
    rows, several = token_rows(templated, "hi")
    assert not several
    assert texts(templated, rows) == ["user: hi\nassistant: "]
    assert np.array_equal(encode(templated, [USER]), rows[0])
    assert np.array_equal(encode(templated, "hi", "Be brief."), encode(templated, [brief, USER]))
    rows, several = token_rows(templated, [brief, USER])
    assert not several
    assert texts(templated, rows) == ["system: Be brief.\nuser: hi\nassistant: "]


def test_a_list_of_prompts_is_several_even_if_it_holds_one(templated, byte_tokenizer):
    for prompts in (["hi", "hello"], [[USER], [USER, {"role": "assistant", "content": ""}, USER]], ["hi"]):
        rows, several = token_rows(templated, prompts)
        assert several
        assert len(rows) == len(prompts)
        assert all(row.shape[0] == 1 for row in rows)


def test_rows_of_token_ids_lose_what_the_mask_leaves_out():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    rows, several = token_rows(None, None, ids, mask)
    assert several
    assert [row.tolist() for row in rows] == [[[5, 6]], [[7, 8, 9, 4]]]
    assert [row.tolist() for row in token_rows(None, ids)[0]] == [[[0, 0, 5, 6]], [[7, 8, 9, 4]]]
    rows, several = token_rows(None, ids[:1], None, mask[:1])
    assert not several
    assert rows[0].tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": None}, "nothing to generate from: give a prompt or input_ids"),
        ({"prompt": "hi", "input_ids": torch.ones(1, 2).long()}, "prompt and input_ids say the same thing twice"),
        ({"prompt": "hi", "attention_mask": torch.ones(1, 2)}, "an attention_mask goes with token ids"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": 5}, "a prompt must be text, a list of messages or token ids, got int"),
        ({"prompt": []}, "there are no prompts: the list is empty"),
        ({"prompt": ["hi", ""]}, "prompt 1: the prompt is empty"),
        ({"prompt": ["hi", 5]}, "prompt 1: it must be text or a list of messages, got int"),
        ({"prompt": [[USER], []]}, "prompt 1: the list of messages is empty"),
        ({"prompt": [USER, "hi"]}, "message 1 must be a dict with role and content, got str"),
        ({"prompt": [{"role": "user"}]}, "message 0: content must be text, got None"),
        ({"prompt": [{"role": 1, "content": "hi"}]}, "message 0: role must be text, got 1"),
        ({"prompt": [[USER, {"role": "tool", "content": "x"}]]}, "prompt 0: the model's chat template refuses .*no to"),
        ({"prompt": torch.ones(1, 2, 3).long()}, r"must be whole numbers of shape \[N, C\], got int64 \[1, 2, 3\]"),
        ({"prompt": [1, 2.5]}, "prompt 0: it must be text or a list of messages, got int"),
        ({"prompt": torch.ones(1, 3)}, r"token ids must be whole numbers of shape \[N, C\], got float32 \[1, 3\]"),
        ({"prompt": torch.ones(1, 0).long()}, r"of shape \[N, C\], got int64 \[1, 0\]"),
        ({"prompt": None, "input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)},
         r"attention_mask must have the shape \[1, 3\] of the token ids, got float32 \[1, 2\]"),
        ({"prompt": None, "input_ids": torch.ones(2, 3).long(), "attention_mask": torch.zeros(2, 3)},
         "row 0: the attention_mask leaves no token"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(templated, asked, message):
    with pytest.raises(DataError, match=message):
        token_rows(templated, **asked)


@pytest.mark.parametrize("ids", [[5, 6, 7], (5, 6, 7), np.array([5, 6, 7]), torch.tensor([5, 6, 7]), [[5, 6, 7]]])
def test_token_ids_of_one_prompt_may_be_a_list(ids):
    [row], several = token_rows(None, ids)
    assert row.tolist() == [[5, 6, 7]]
    assert several is (ids == [[5, 6, 7]] if isinstance(ids, list) else False)


def test_several_prompts_of_token_ids_may_differ_in_length():
    rows, several = token_rows(None, [[5, 6, 7], np.array([8])])
    assert [row.tolist() for row in rows] == [[[5, 6, 7]], [[8]]]
    assert several


@pytest.mark.parametrize("asked", ["hi \ud83d", [{"role": "user", "content": "hi \ud83d"}]])
def test_text_that_is_not_valid_unicode_is_one_line(templated, asked):
    with pytest.raises(DataError, match="is not valid Unicode text"):
        encode(templated, asked)
    with pytest.raises(DataError, match="is not valid Unicode text"):
        encode(templated, "hi", "Be brief\ud83d")


def test_without_a_template_only_text_has_a_form(byte_tokenizer):
    assert byte_tokenizer.decode(encode(byte_tokenizer, "hi")[0]) == "hi"
    with pytest.raises(SolmError, match="no chat template, so a list of messages has no form"):
        encode(byte_tokenizer, [USER])
    with pytest.raises(SolmError, match="no chat template, so a system message has no place"):
        encode(byte_tokenizer, "hi", "Be brief.")
    with pytest.raises(SolmError, match="text needs a tokenizer"):
        encode(None, "hi")
