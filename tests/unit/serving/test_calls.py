"""Replies are split into content and calls, however they are cut into pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.serving import DEEPSEEK_MARKS
from solm.serving.call_forms import FORMS
from solm.serving.calls import CallPart, CallReader

HERMES = {
    "hello  \n": ("hello  \n", []),
    "": ("", []),
    'Sure. \n<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{", "b": {"c": 1}}}\n</tool_call>': (
        "Sure.", [("f", '{"a": "}\\"{", "b": {"c": 1}}')],
    ),
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {"q":[1]}}\n'
    "</tool_call>\n": ("", [("f", "{}"), ("g", '{"q":[1]}')]),
    '<tool_call>{"name": "f", "arguments": {}}<tool_call>{"name":"g","arguments":{}}': ("", [("f", "{}"), ("g", "{}")]),
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
    '[TOOL_CALLS]{"name": "f", "arguments": {}}': ("", [("f", "{}")]),
    '[TOOL_CALLS][{"name": "other", "arguments": {}}]': ('[TOOL_CALLS][{"name": "other", "arguments": {}}]', []),
    "[TOOL_CALLS] no": ("[TOOL_CALLS] no", []),
    '[TOOL_CALLS][{"name": "f", "arguments": {"a": "cut': ("", [("f", '{"a": "cut')]),
    '[TOOL_CALLS][{"na': ('[TOOL_CALLS][{"na', []),
}  # fmt: skip
LLAMA = {
    " hello {}": (" hello {}", []),
    '\n{"name": "f", "parameters": {"a": "}"}}': ("", [("f", '{"a": "}"}')]),
    '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"b": {}}} ok': (
        "ok", [("f", "{}"), ("g", '{"b": {}}')],
    ),
    '{"type": "function", "name": "f", "parameters": {"x": 1}}': ("", [("f", '{"x": 1}')]),
    '{"name": "other", "parameters": {}}': ('{"name": "other", "parameters": {}}', []),
    '{"answer": 5} is it': ('{"answer": 5} is it', []),
    '<|python_tag|>print("a")': ('<|python_tag|>print("a")', []),
    '{"name": "f", "parameters": {"a": "cut': ("", [("f", '{"a": "cut')]),
    '{"na': ('{"na', []),
    "": ("", []),
}  # fmt: skip
TEXTS = "<parameter={}>\n{}\n</parameter>\n"
CODER = {
    "Sure. <tool_ <tool_call>\n<function=f>\n" + TEXTS.format("a", "if x < 1:\n  y = '</b>'") + TEXTS.format("n", "5")
    + TEXTS.format("l", '["x", true]') + TEXTS.format("o", "True") + "</function>\n</tool_call>\n": (
        "Sure. <tool_", [("f", '{"a": "if x < 1:\\n  y = \'</b>\'", "n": 5, "l": ["x", true], "o": true}')],
    ),
    "<tool_call><function=g></function></tool_call><tool_call>\n<function=f>\n" + TEXTS.format("a", "12")
    + TEXTS.format("n", "twelve") + "</function></tool_call>!": (
        "!", [("g", "{}"), ("f", '{"a": "12", "n": "twelve"}')],
    ),
    "<tool_call>\n<function=other>\n</function>\n</tool_call>": (
        "<tool_call>\n<function=other>\n</function>\n</tool_call>", [],
    ),
    '<tool_call>{"name": "f", "arguments": {"a": "b"}}</tool_call>': ("", [("f", '{"a": "b"}')]),
    "<tool_call>\n<function=f>\n<parameter=a>\nlost\n</function>\n</tool_call>": ("", [("f", '{"a": "lost"}')]),
    "<tool_call>\n<function=f>\n" + TEXTS.format("a", "b") + "</tool_call> then": ("then", [("f", '{"a": "b"}')]),
    "<tool_call>\n<function=f>\n" + TEXTS.format("a", "b") + "<parameter=n>\n5": ("", [("f", '{"a": "b"')]),
    "<tool_call>\n<fun": ("<tool_call>\n<fun", []),
}  # fmt: skip
MISTRAL_13 = {
    "hello [TOOL": ("hello [TOOL", []),
    'So: [TOOL_CALLS]f[ARGS]{"a": "[ARGS]}"}[TOOL_CALLS]g[ARGS] {}': ("So:", [("f", '{"a": "[ARGS]}"}'), ("g", "{}")]),
    "[TOOL_CALLS]other[ARGS]{}": ("[TOOL_CALLS]other[ARGS]{}", []),
    '[TOOL_CALLS]f[ARGS]["a"]': ('[TOOL_CALLS]f[ARGS]["a"]', []),
    "[TOOL_CALLS]" + "no " * 50 + "[TOOL_CALLS]g[ARGS]{}": ("[TOOL_CALLS]" + ("no " * 50).rstrip(), [("g", "{}")]),
    '[TOOL_CALLS]f[ARGS]{"a": "cut': ("", [("f", '{"a": "cut')]),
    "[TOOL_CALLS]f[AR": ("[TOOL_CALLS]f[AR", []),
    "[TOOL_CALLS]f[ARGS]": ("[TOOL_CALLS]f[ARGS]", []),
}  # fmt: skip
VALUE = "<arg_key>{}</arg_key>{}<arg_value>{}</arg_value>{}"
GLM = {
    "Sure. <tool_ \n<tool_call>f\n" + VALUE.format("a", "\n", "if x < 1:\n  y = '</b>'\n", "\n")
    + VALUE.format("l", "\n", '["x"]', "\n") + "</tool_call>\n<tool_call>g\n</tool_call>!": (
        "Sure. <tool_!", [("f", '{"a": "if x < 1:\\n  y = \'</b>\'\\n", "l": ["x"]}'), ("g", "{}")],
    ),
    "<tool_call>f" + VALUE.format("a", "", "12", "") + VALUE.format("n", "", "12", "") + "</tool_call>": (
        "", [("f", '{"a": "12", "n": 12}')],
    ),
    "<tool_call>g</tool_call><tool_call>other</tool_call>": ("<tool_call>other</tool_call>", [("g", "{}")]),
    "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>cut": ("", [("f", "")]),
    "<tool_call>f\n<arg": ("<tool_call>f\n<arg", []),
}  # fmt: skip
CALLS, CALL, SEPARATOR, CALL_ENDS, CALLS_END = DEEPSEEK_MARKS
DEEPSEEK = {
    f'Sure.{CALLS}{CALL}f{SEPARATOR}{{"a": "}}"}}{CALL_ENDS}{CALL}g{SEPARATOR}{{}}{CALL_ENDS}{CALLS_END} ok': (
        "Sure.ok", [("f", '{"a": "}"}'), ("g", "{}")],
    ),
    f"{CALLS}{CALL}other{SEPARATOR}{{}}{CALL_ENDS}{CALLS_END}": (
        f"{CALLS}{CALL}other{SEPARATOR}{{}}{CALL_ENDS}{CALLS_END}", [],
    ),
    f'{CALLS}{CALL}f{SEPARATOR}{{"a": "cut': ("", [("f", '{"a": "cut')]),
}  # fmt: skip
FUNCTION = f"{CALL}function{SEPARATOR}"
DEEPSEEK_3 = {
    f'{CALLS}{FUNCTION}f\n```json\n{{"a": "```"}}\n```{CALL_ENDS}\n{FUNCTION}g\n```json\n{{}}\n```{CALL_ENDS}': (
        "", [("f", '{"a": "```"}'), ("g", "{}")],
    ),
    f"{CALLS}{FUNCTION}f{CALL_ENDS}": (f"{CALLS}{FUNCTION}f{CALL_ENDS}", []),
}  # fmt: skip
BY_FORM = {
    "hermes": HERMES, "mistral": MISTRAL, "mistral-13": MISTRAL_13, "llama3": LLAMA, "qwen3-coder": CODER,
    "glm-4.5": GLM, "glm-4.7": GLM, "deepseek-v3": DEEPSEEK_3, "deepseek-v3.1": DEEPSEEK,
}  # fmt: skip
CASES = [(form, text, expected) for form, cases in BY_FORM.items() for text, expected in cases.items()]
BY_NAME = {form.name: form for form in FORMS}
PARAMETERS = {"properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "l": {}, "o": {"type": "boolean"}}}


def read(text, cuts, form="hermes"):
    reader, found = CallReader(BY_NAME[form], {"f": PARAMETERS, "g": {}}), []
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    for start, end in pairwise(places):
        found += reader.push(text[start:end])
    found += reader.finish()
    calls = []
    for part in found:
        if isinstance(part, CallPart):
            if part.name is not None:
                assert part.index == len(calls)
                assert len(part.identity) == (9 if form.startswith("mistral") else 29)
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


@pytest.mark.parametrize(
    ("form", "around"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": %s}]'),
        ("mistral-13", "[TOOL_CALLS]f[ARGS]%s"),
        ("deepseek-v3.1", f"{CALLS}{CALL}f{SEPARATOR}%s{CALL_ENDS}{CALLS_END}"),
        ("llama3", '{"name": "f", "parameters": %s}'),
    ],
    ids=["hermes", "mistral", "mistral-13", "deepseek", "llama3"],
)
@settings(max_examples=20)
@given(st.dictionaries(st.text(), st.text() | st.lists(st.text() | st.integers() | st.none()), max_size=4))
def test_arguments_are_the_json_that_was_written(form, around, arguments):
    written = json.dumps(arguments, ensure_ascii=False)
    text = around.replace("%s", written)
    assert read(text, range(0, len(text), 3), form) == ("", [("f", written)])
