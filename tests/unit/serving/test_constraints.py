"""Grammars of replies that call tools: what may be said and what may not."""

import copy

import pytest

pytest.importorskip("llguidance")

from helpers.serving import DEEPSEEK_MARKS
from solm.runtime.grammars import Compiler, GrammarError
from solm.serving.call_forms import FORMS, hidden_marks
from solm.serving.call_grammars import CallGrammars
from solm.serving.constraints import wanted
from solm.serving.failures import ApiError
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


BY_NAME = {form.name: form for form in FORMS}


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
    calls = CallGrammars(BY_NAME[form], hidden_marks(BY_NAME[form], tokenizer))
    _, make = wanted(request, request.tools, calls)
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


@pytest.fixture(scope="module")
def marked(byte_tokenizer):
    """The tokenizer with marks that text does not show, as Mistral's and Llama's have them, and its compiler."""
    found = copy.deepcopy(byte_tokenizer)
    found.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|python_tag|>", "[ARGS]"]})
    return found, Compiler(found, 262, [2])


ROME_ARGUMENTS = '{"name": "go", "arguments": {"city":"Rome"}}'
ROME_PARAMETERS = '{"name": "go", "parameters": {"city":"Rome"}}'
ROME_ELEMENTS = "<tool_call>\n<function=go>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>go\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"
CALLS, CALL, SEPARATOR, CALL_ENDS, CALLS_END = DEEPSEEK_MARKS
ROME_CITY = '{"city":"Rome"}'
DEEPSEEK = f"{CALL}go{SEPARATOR}{ROME_CITY}{CALL_ENDS}"
DEEPSEEK_3 = f"{CALL}function{SEPARATOR}go\n```json\n{ROME_CITY}\n```{CALL_ENDS}"
BY_FORM = {
    "mistral": (
        f"[TOOL_CALLS][{ROME_ARGUMENTS}]", f'[TOOL_CALLS][{ROME_ARGUMENTS}, {{"name": "wait", "arguments": {{}}}}]',
        f"I [TOOL_CALLS][{ROME_ARGUMENTS}]",
    ),
    "mistral-13": (
        '[TOOL_CALLS]go[ARGS]{"city":"Rome"}', '[TOOL_CALLS]go[ARGS]{"city":"Rome"}[TOOL_CALLS]wait[ARGS]{}',
        'I [TOOL_CALLS]go[ARGS]{"city":"Rome"}',
    ),
    "llama3": (ROME_PARAMETERS, None, None),
    "qwen3-coder": (ROME_ELEMENTS, f"{ROME_ELEMENTS}\n<tool_call>\n<function=wait>\n</function>\n</tool_call>",
                    f"I {ROME_ELEMENTS}"),
    "glm-4.5": (GLM, f"{GLM}\n<tool_call>wait\n</tool_call>", f"I {GLM}"),
    "glm-4.7": (GLM.replace("\n", ""), GLM.replace("\n", "") + "<tool_call>wait</tool_call>", None),
    "deepseek-v3.1": (
        f"{CALLS}{DEEPSEEK}{CALLS_END}",
        f"{CALLS}{DEEPSEEK}{DEEPSEEK.replace('go', 'wait').replace(ROME_CITY, '{}')}{CALLS_END}", None,
    ),
    "deepseek-v3": (f"{CALLS}{DEEPSEEK_3}{CALLS_END}", f"{CALLS}{DEEPSEEK_3}\n{DEEPSEEK_3}{CALLS_END}", None),
}  # fmt: skip


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("form", BY_FORM)
def test_calls_fit_their_tools_in_every_form(compiler, byte_tokenizer, marked, form, hidden):
    tokenizer, using = marked if hidden else (byte_tokenizer, compiler)
    one, two, later = BY_FORM[form]

    def fit(text, **asked):
        return fits(using, tokenizer, text, form=form, **asked)

    assert bool(hidden_marks(BY_NAME[form], tokenizer)) == (hidden and form in ("mistral", "mistral-13", "llama3"))
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


ELEMENTS = {
    "properties": {
        "code": {"type": "string"}, "count": {"type": "integer", "minimum": 3}, "node": {"$ref": "#/$defs/node"},
        "kind": {"enum": ["a", "b\nc"]},
    },
    "required": ["code"], "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
}  # fmt: skip
ELEMENT = "<parameter={}>\n{}\n</parameter>\n"


def test_parameters_as_elements_fit_one_by_one(compiler, byte_tokenizer):
    code = ELEMENT.format("code", "if a < b:\n  </parameter")

    def fit(text):
        text = f"<tool_call>\n<function=go>\n{text}</function>\n</tool_call>"
        asked = {"form": "qwen3-coder", "parameters": ELEMENTS, "tool_choice": "required"}
        return fits(compiler, byte_tokenizer, text, **asked)

    assert fit(code)
    assert fit(code + ELEMENT.format("count", "12") + ELEMENT.format("node", "[[], [[]]]"))
    assert fit(code + ELEMENT.format("kind", "b\nc"))
    for wrong in ("", ELEMENT.format("count", "12"), code + ELEMENT.format("count", "2"), code + code,
                  code + ELEMENT.format("node", "[1]"), code + ELEMENT.format("kind", "c")):  # fmt: skip
        assert not fit(wrong), wrong


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"properties": {"a": {"type": "string", "maxLength": 3}}}, "'maxLength' of a text"),
        ({"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}, "$defs alone"),
        ({"properties": {"a>": {}}}, "the name 'a>'"),
        ({"properties": {}, "minProperties": 0}, "'minProperties' cannot be enforced"),
    ],
)
def test_what_elements_cannot_say_is_refused_by_name(compiler, byte_tokenizer, parameters, word):
    with pytest.raises(ApiError, match=r"tools\.0\.function\.parameters") as refused:
        fits(compiler, byte_tokenizer, "", form="qwen3-coder", parameters=parameters, tool_choice="required")
    assert word in refused.value.message
