"""Grammars of replies that call tools: what may be said and what may not."""

import pytest

pytest.importorskip("llguidance")

from solm.runtime.constraints import Compiler
from solm.runtime.grammars import GrammarError
from solm.serving.constraints import wanted
from solm.serving.requests import ChatRequest

CITY = {
    "type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
ROME = '<tool_call>\n{"name": "go", "arguments": {"city":"Rome"}}\n</tool_call>'
WAIT = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
TEXT = "I < you. <tool"


@pytest.fixture(scope="module")
def compiler(byte_tokenizer):
    return Compiler(byte_tokenizer, 259, [2])


def fits(compiler, tokenizer, text, strict=True, **asked):
    """Whether a request's grammar lets a whole reply through."""
    request = ChatRequest.model_validate(
        {
            "model": "m", "messages": [{"role": "user", "content": "a"}],
            "tools": [
                {"type": "function", "function": {"name": "go", "parameters": CITY, "strict": strict}},
                {"type": "function", "function": {"name": "wait"}},
            ],
            **asked,
        }
    )  # fmt: skip
    _, make = wanted(request, request.tools)
    constraint = compiler.compile(make(compiler.compile)).copy()
    try:
        for token in tokenizer.encode(text):
            constraint.said(token)
    except GrammarError:
        return False
    return constraint._matcher.is_accepting()


@pytest.mark.parametrize(
    ("asked", "those", "others"),
    [
        ({"tool_choice": "required"}, [ROME, WAIT, f"{ROME}\n{WAIT}\n{WAIT}"], [TEXT, "", f"{TEXT}{ROME}"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [ROME, WAIT], [f"{ROME}\n{WAIT}"]),
        (
            {"tool_choice": {"type": "function", "function": {"name": "wait"}}}, [WAIT], [ROME, f"{WAIT}\n{WAIT}"],
        ),
        ({"tool_choice": "auto"}, [TEXT, "", ROME, f"{TEXT}{ROME}\n{WAIT}!"], [ROME.replace("Rome", "Oslo")]),
        ({"parallel_tool_calls": False}, [TEXT, ROME, f"{TEXT}{WAIT}"], [f"{ROME}\n{WAIT}", f"{ROME}!", ROME[:20]]),
        (
            {"response_format": {"type": "json_object"}}, ['{"a": 1}', ROME, f"{WAIT}\n{ROME}"],
            [TEXT, '{"a": 1}' + ROME, ROME.replace("Rome", "Oslo")],
        ),
    ],
)  # fmt: skip
def test_calls_fit_their_tools(compiler, byte_tokenizer, asked, those, others):
    assert [text for text in those if not fits(compiler, byte_tokenizer, text, **asked)] == []
    assert [text for text in others if fits(compiler, byte_tokenizer, text, **asked)] == []


def test_a_free_choice_among_tools_that_are_not_strict_asks_for_no_grammar(compiler, byte_tokenizer):
    with pytest.raises(TypeError):
        fits(compiler, byte_tokenizer, "", strict=False, tool_choice="auto")
