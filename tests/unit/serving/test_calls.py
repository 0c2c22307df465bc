"""Replies are split into content and calls, however they are cut into pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solm.serving.calls import CallPart, CallReader

CASES = {
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


def read(text, cuts):
    reader, found = CallReader(frozenset({"f", "g"})), []
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    for start, end in pairwise(places):
        found += reader.push(text[start:end])
    found += reader.finish()
    calls = []
    for part in found:
        if isinstance(part, CallPart):
            if part.name is not None:
                assert part.index == len(calls)
                calls.append((part.name, ""))
            name, arguments = calls[part.index]
            calls[part.index] = (name, arguments + part.arguments)
    assert reader.calls == len(calls)
    return "".join(part for part in found if isinstance(part, str)), calls


@pytest.mark.parametrize("text", CASES, ids=range(len(CASES)))
@settings(max_examples=20)
@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_pieces_give_what_the_whole_gives(text, cuts):
    assert read(text, cuts) == CASES[text]
    assert read(text, range(len(text))) == CASES[text]


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.text() | st.lists(st.text() | st.integers() | st.none()), max_size=4))
def test_arguments_are_the_json_that_was_written(arguments):
    written = json.dumps(arguments, ensure_ascii=False)
    text = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    assert read(text, range(0, len(text), 3)) == ("", [("f", written)])
