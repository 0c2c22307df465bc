"""Calls of tools: replies are split into content and calls, and grammars say what may be a call."""

import copy
from itertools import pairwise

import pytest

pytest.importorskip("llguidance")

from hypothesis import given, settings
from hypothesis import strategies as st

from solm.runtime.grammars import Compiler, GrammarError
from solm.runtime.reply import hidden_token
from solm.serving.constraints import CallGrammars, wanted
from solm.serving.schema import ChatRequest
from solm.serving.tools import FORMS, CallPart, CallReader, form_of

HERMES = {
    "hello  \n": ("hello  \n", []),
    "": ("", []),
    'Sure. \n<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{", "b": {"c": 1}}}\n</tool_call>': (
        "Sure.", [("f", '{"a": "}\\"{", "b": {"c": 1}}')],
    ),
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {"q":[1]}}\n'
    "</tool_call>\n": ("", [("f", "{}"), ("g", '{"q":[1]}')]),
    'a < b <tool_ <tool_call>{"arguments": {"x": "é"}, "name": "g"}</tool_call>!': (
        "a < b <tool_!", [("g", '{"x": "é"}')],
    ),
    '<tool_call>{"name": "other", "arguments": {}}</tool_call> then': (
        '<tool_call>{"name": "other", "arguments": {}}</tool_call> then', [],
    ),
    '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>': (
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', [],
    ),
    "<tool_call>" + "[" * 900 + "</tool_call>": ("<tool_call>" + "[" * 900 + "</tool_call>", []),
    '<tool_call>\n{"name": "f", "arguments": {"a": "cut': ("", [("f", '{"a": "cut')]),
    'x<tool_call>\n{"na': ('x<tool_call>\n{"na', []),
    "text ends <tool": ("text ends <tool", []),
}  # fmt: skip


MISTRAL = {
    "hello [TOOL": ("hello [TOOL", []),
    'So: [TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "]"]}, "id": "abc"}, {"name": "g", "arguments": {}}] ok': (
        "So:ok", [("f", '{"a": [1, "]"]}'), ("g", "{}")],
    ),
    '[TOOL_CALLS][{"arguments": {"x": 1}, "name": "g"},{"name":"f","arguments":{}}]': (
        "", [("g", '{"x": 1}'), ("f", "{}")],
    ),
    '[TOOL_CALLS][{"name": "other", "arguments": {}}]': ('[TOOL_CALLS][{"name": "other", "arguments": {}}]', []),
    '[TOOL_CALLS][{"name": "f", "arguments": {"a": "cut': ("", [("f", '{"a": "cut')]),
}  # fmt: skip
LLAMA = {
    " hello {}": (" hello {}", []),
    '\n{"name": "f", "parameters": {"a": "}"}}': ("", [("f", '{"a": "}"}')]),
    '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"b": {}}} ok': (
        "ok", [("f", "{}"), ("g", '{"b": {}}')],
    ),
    '{"name": "other", "parameters": {}}': ('{"name": "other", "parameters": {}}', []),
    '{"answer": 5} is it': ('{"answer": 5} is it', []),
    '<|python_tag|>print("a")': ('<|python_tag|>print("a")', []),
    '{"name": "f", "parameters": {"a": "cut': ("", [("f", '{"a": "cut')]),
}  # fmt: skip
BY_FORM = {"hermes": HERMES, "mistral": MISTRAL, "llama3": LLAMA}
CASES = [(form, text, expected) for form, cases in BY_FORM.items() for text, expected in cases.items()]
BY_NAME = {form.name: form for form in FORMS}


def read(text, cuts, form="hermes"):
    reader, found = CallReader(BY_NAME[form], {"f", "g"}), []
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    for start, end in pairwise(places):
        found += reader.push(text[start:end])
    found += reader.push("", last=True)
    calls = []
    for part in found:
        if isinstance(part, CallPart):
            if part.name is not None:
                assert part.index == len(calls)
                assert len(part.identity) == (9 if form == "mistral" else 29)
                calls.append((part.name, ""))
            name, arguments = calls[part.index]
            calls[part.index] = (name, arguments + part.arguments)
    assert reader.calls == len(calls)
    return "".join(part for part in found if isinstance(part, str)), calls


@pytest.mark.parametrize(("form", "text", "expected"), CASES, ids=[f"{form}-{i}" for i, (form, *_) in enumerate(CASES)])
@settings(max_examples=8)
@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_pieces_give_what_the_whole_gives(form, text, expected, cuts):
    assert read(text, cuts, form) == expected
    assert read(text, range(len(text)), form) == expected


CITY = {
    "type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
ROME = '<tool_call>\n{"name": "go", "arguments": {"city":"Rome"}}\n</tool_call>'
WAIT = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
TEXT = "I < you. <tool"


@pytest.fixture(scope="module")
def compiler(byte_tokenizer):
    return Compiler(byte_tokenizer, 259, [2])


def fits(compiler, tokenizer, text, strict=True, form="hermes", parameters=CITY, **asked):
    """Whether a request's grammar lets a whole reply through."""
    request = ChatRequest.model_validate(
        {
            "model": "m", "messages": [{"role": "user", "content": "a"}],
            "tools": [
                {"type": "function", "function": {"name": "go", "parameters": parameters, "strict": strict}},
                {"type": "function", "function": {"name": "wait"}},
            ],
            **asked,
        }
    )  # fmt: skip
    calls = CallGrammars(BY_NAME[form], hidden_token(tokenizer, BY_NAME[form].begins))
    _, make = wanted(request, request.tools, calls)
    constraint = compiler.compile(make(compiler.compile)).copy()
    try:
        for token in tokenizer.encode(text):
            constraint.add(token)
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


@pytest.fixture(scope="module")
def marked(byte_tokenizer):
    """The tokenizer with marks that text does not show, as Mistral's and Llama's have them, and its compiler."""
    found = copy.deepcopy(byte_tokenizer)
    found.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|python_tag|>"]})
    return found, Compiler(found, 261, [2])


ROME_ARGUMENTS = '{"name": "go", "arguments": {"city":"Rome"}}'
ROME_PARAMETERS = '{"name": "go", "parameters": {"city":"Rome"}}'
WRITTEN = {
    "mistral": (
        f"[TOOL_CALLS][{ROME_ARGUMENTS}]", f'[TOOL_CALLS][{ROME_ARGUMENTS}, {{"name": "wait", "arguments": {{}}}}]',
        f"I [TOOL_CALLS][{ROME_ARGUMENTS}]",
    ),
    "llama3": (ROME_PARAMETERS, None, None),
}  # fmt: skip


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("form", WRITTEN)
def test_calls_fit_their_tools_in_every_form(compiler, byte_tokenizer, marked, form, hidden):
    tokenizer, using = marked if hidden else (byte_tokenizer, compiler)
    one, two, later = WRITTEN[form]

    def fit(text, **asked):
        return fits(using, tokenizer, text, form=form, **asked)

    assert (hidden_token(tokenizer, BY_NAME[form].begins) is not None) == hidden
    for choice in ("required", "auto"):
        assert fit(one, tool_choice=choice)
        assert not fit(one.replace("Rome", "Oslo"), tool_choice=choice)
        assert not fit(one[:-3], tool_choice=choice) or choice == "auto"
        if two is not None:
            assert fit(two, tool_choice=choice)
            assert not fit(two, tool_choice=choice, parallel_tool_calls=False)
        assert later is None or fit(later, tool_choice=choice) == (choice == "auto")
        assert fit("hello", tool_choice=choice) == (choice == "auto")
    if form == "llama3":
        assert not fit(f"{ROME_PARAMETERS}; {ROME_PARAMETERS}", tool_choice="required")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tool_call>", "hermes"), ("<tool_call><function=", None), ("[TOOL_CALLS]", "mistral"),
        ("[TOOL_CALLS][ARGS]", None), ('<|start_header_id|>"parameters"', "llama3"), ("", None), (None, None),
    ],
)  # fmt: skip
def test_the_words_of_a_template_say_its_form(template, name):
    form = form_of(template)
    assert (None if form is None else form.name) == name
