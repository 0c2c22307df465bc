"""Replies that follow a format, a grammar, or call tools, with the official client."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from helpers.serving import TOOL_TEMPLATE, ask, running, tiny_service, until
from solm.serving import constraints

pytest.importorskip("llguidance")
SHORT = [{"role": "user", "content": "Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "What it is like outside.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"], "additionalProperties": False,
        },
    },
}  # fmt: skip
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "weather"}}


class Event(BaseModel):
    """A schema as the client makes it of a class."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["party", "talk"]
    guests: int
    sure: bool


@pytest.fixture(scope="module")
def service(byte_tokenizer):
    return tiny_service(byte_tokenizer, template=TOOL_TEMPLATE, max_rows=8)


def text(client, **options):
    return ask(client, **{"messages": SHORT, "max_tokens": 200, **options}).choices[0].message.content


def token(service, text, bias):
    """A bias for the tokens of a text."""
    return {str(token): bias for token in service.lm.tokenizer.encode(text)}


def outputs(**asked):
    return {"extra_body": {"structured_outputs": asked}}


def checked(call):
    arguments = json.loads(call.function.arguments)
    assert call.type == "function"
    assert call.id.startswith("call_")
    if call.function.name == "weather":
        assert arguments["city"] in ("Paris", "Rome")
        assert 1 <= arguments["days"] <= 9
    else:
        assert (call.function.name, arguments) == ("clock", {})
    return call.function.name


@pytest.mark.parametrize("temperature", [0, 1.7])
def test_a_class_of_pydantic_is_what_comes_back(client, temperature):
    answer = client.chat.completions.parse(
        model="tiny", messages=SHORT, response_format=Event, max_tokens=300, temperature=temperature, seed=4,
        extra_body={"efficiency": {"budget": "keep=0.6"}},
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Event)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.compute["realised"]["net"] < 1


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"regex": "(ab|cd){3}[0-9]{2,4}"}, "(ab|cd){3}[0-9]{2,4}"),
        ({"choice": ["yes", "no, never"]}, "yes|no, never"),
        ({"grammar": 'start: "x=" NUMBER ";"\nNUMBER: /[0-9]{1,3}/'}, "x=[0-9]{1,3};"),
        ({"grammar": 'root ::= "<" ("a" | "b") ">"'}, "<[ab]>"),
        ({"json": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}}, r"\[[a-z,\s]*\]"),
    ],
)  # fmt: skip
def test_grammars_are_followed(client, asked, form):
    said = text(client, temperature=1.0, **outputs(**asked))
    assert re.fullmatch(form, said), said
    plain = client.completions.create(model="tiny", prompt="a", max_tokens=100, n=2, seed=1, **outputs(**asked))
    assert all(re.fullmatch(form, choice.text) for choice in plain.choices)
    assert {choice.finish_reason for choice in plain.choices} == {"stop"}


def test_any_json_object_and_a_reply_that_is_cut(service, client):
    answer = ask(client, messages=SHORT, max_tokens=3, response_format={"type": "json_object"}).choices[0]
    assert answer.finish_reason == "length"
    assert answer.message.content.startswith("{")
    whole = text(client, response_format={"type": "json_object"}, temperature=0, logit_bias=token(service, "}", 100))
    assert whole == "{}"
    assert text(client, response_format={"type": "text"}) == text(client)


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("parallel", [True, False])
def test_tools_that_must_be_called_are(service, client, choice, parallel, monkeypatch):
    """As many as the grammar lets, because the reply does not want to end."""
    monkeypatch.setattr(constraints, "MAX_TOOL_CALLS", 3)
    answer = ask(
        client, budget=None, messages=SHORT, max_tokens=450, tools=[WEATHER, CLOCK], tool_choice=choice, seed=5,
        temperature=1.0, parallel_tool_calls=parallel, logit_bias=token(service, " \r\t", -100) | {"2": -100},
    ).choices[0]  # fmt: skip
    names = [checked(call) for call in answer.message.tool_calls]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert names == ["weather"] if choice == NAMED else set(names) <= {"weather", "clock"}
    assert len(names) == (3 if parallel and choice == "required" else 1)


def test_streamed_calls_are_those_of_a_whole_answer(service, client, monkeypatch):
    monkeypatch.setattr(constraints, "MAX_TOOL_CALLS", 2)
    options = {
        "messages": SHORT, "tools": [WEATHER, CLOCK], "tool_choice": "required", "max_tokens": 450, "n": 2, "seed": 8,
        "temperature": 0.7, "logit_bias": token(service, " \r\t", -100) | {"2": -100},
    }  # fmt: skip
    whole = ask(client, budget=None, **options)
    found = [{}, {}]
    reasons = {}
    for piece in ask(client, budget=None, stream=True, **options):
        for choice in piece.choices:
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            assert not choice.delta.content
            for part in choice.delta.tool_calls or []:
                call = found[choice.index].setdefault(part.index, {"name": None, "arguments": ""})
                if part.function.name:
                    assert (call["name"], call["arguments"]) == (None, "")
                    assert part.id.startswith("call_")
                    call["name"] = part.function.name
                call["arguments"] += part.function.arguments
    for choice, calls in zip(whole.choices, found, strict=True):
        assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
            (call["name"], call["arguments"]) for call in calls.values()
        ]
        assert len(calls) == 2
        assert reasons[choice.index] == choice.finish_reason == "tool_calls"
    with client.chat.completions.stream(model="tiny", **options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == found[0][0]["arguments"]


def test_a_choice_of_the_model_may_be_text(service, client):
    """Also where calls would have to fit; with a format the reply is a call or has that."""
    offered = {"messages": SHORT, "tools": [WEATHER], "max_tokens": 30, "logit_bias": {"2": -100}}
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    for more in ({}, {"tools": [strict]}, {"parallel_tool_calls": False}):
        answer = ask(client, **offered | more).choices[0]
        assert answer.message.tool_calls is None
        assert (bool(answer.message.content), answer.finish_reason) == (True, "length")
    bias = token(service, "{}", 100)
    either = ask(client, **offered | {"response_format": {"type": "json_object"}, "logit_bias": bias}).choices[0]
    assert (either.message.content, either.message.tool_calls) == ("{}", None)
    bias = token(service, " \n\r\t{", -100)
    called = ask(
        client, **offered | {"response_format": {"type": "json_object"}, "logit_bias": bias, "max_tokens": 300}
    ).choices[0]
    assert [checked(call) for call in called.message.tool_calls] == ["weather"]


def test_a_call_and_its_result_come_back_as_messages(service, client):
    first = ask(client, messages=SHORT, max_tokens=200, tools=[WEATHER], tool_choice=NAMED)
    (call,) = first.choices[0].message.tool_calls
    talk = [*SHORT, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = ask(client, messages=talk, max_tokens=5, tools=[WEATHER])
    arguments = json.dumps(json.loads(call.function.arguments))
    shown = (
        f"<tools>weather <user>Paris?\n<assistant><tool_call>weather{arguments}</tool_call>\n<tool>sunny\n<assistant>"
    )
    assert second.usage.prompt_tokens == len(service.lm.tokenizer.encode(shown))
    without = ask(client, messages=SHORT, max_tokens=5, tools=[WEATHER], tool_choice="none")
    assert without.usage.prompt_tokens == ask(client, messages=SHORT, max_tokens=5).usage.prompt_tokens


def schema(**known):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": known, "strict": True}}}


def tool(**function):
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}], "tool_choice": "required"}


def nested(levels):
    found = {"type": "string"}
    for _ in range(levels):
        found = {"type": "object", "properties": {"a": found}}
    return found


SCHEMA, PARAMETERS = "response_format.json_schema.schema", "tools.0.function.parameters"
WRONG = {
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
    "twice": ({"tools": [CLOCK, CLOCK]}, "tools.1.function.name"),
    "parameters of an array": (tool(parameters={"type": "array"}), PARAMETERS),
    "a strict tool": (tool(parameters={"not": {}}, strict=True), PARAMETERS),
    "a choice that is not there": ({"tools": [CLOCK], "tool_choice": NAMED}, "tool_choice"),
    "parallel without tools": ({"parallel_tool_calls": True}, "parallel_tool_calls"),
    "a result of no call": ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id"),
    "arguments that are no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * 10_000}}]}]},
        "messages.0.tool_calls.0.function.arguments",
    ),
    "nothing fits": (schema(**{"$ref": "#"}), SCHEMA),
    "a reference to the network": (schema(**{"$ref": "http://localhost/a"}), SCHEMA),
    "a deep schema": (schema(**nested(40)), SCHEMA),
    "a product": (
        schema(allOf=[{"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {}}, "required": [f"p{i}_{j}"]}
                                 for j in range(6)]} for i in range(8)]), SCHEMA,
    ),
    "an unknown keyword": (schema(**{"not": {"type": "string"}}), SCHEMA),
    "a schema beside another type": (
        {"response_format": schema(type="null")["response_format"] | {"type": "json_object"}},
        "response_format.json_schema",
    ),
    "two": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    "a regex that is none": ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
    "a regex that explodes": (
        {"structured_outputs": {"regex": "((((a{100}){100}){100}){100})"}}, "structured_outputs.regex",
    ),
    "a grammar that explodes": (
        {"structured_outputs": {"grammar": "\n".join(
            ["start: R20", *(f"R{i}: R{i - 1} R{i - 1}" for i in range(1, 21)), 'R0: "a"'])}},
        "structured_outputs.grammar",
    ),
    "tools and a regex": ({"tools": [CLOCK], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_refused_by_its_name(address, name):
    change, param = WRONG[name]
    body = {"model": "tiny", "messages": SHORT, "max_tokens": 2} | change
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400


MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools[0].function.name }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}[TOOL_CALLS][{% for call in m.tool_calls %}{% if call.id | length != 9 %}"
    "{{ raise_exception('ids have 9 characters') }}{% endif %}{{ call.function | tojson }}{% endfor %}]"
    "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)


def test_calls_in_the_form_of_another_model(byte_tokenizer):
    """Whole and streamed, and sent back under the ids of another server."""
    service = tiny_service(byte_tokenizer, policy=False, template=MISTRAL)
    options = {
        "messages": SHORT, "tools": [WEATHER, CLOCK], "tool_choice": "required", "max_tokens": 300, "seed": 8,
        "temperature": 0.7, "budget": None, "logit_bias": token(service, " \r\t", -100), "parallel_tool_calls": False,
    }  # fmt: skip
    with running(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        whole = ask(client, **options).choices[0]
        (call,) = whole.message.tool_calls
        assert (json.loads(call.function.arguments), whole.finish_reason) != ({}, "stop")
        assert call.function.name in ("weather", "clock")
        pieces = [piece.choices[0].delta for piece in ask(client, stream=True, **options)]
        assert not any(piece.content for piece in pieces)
        parts = [part for piece in pieces for part in piece.tool_calls or []]
        assert parts[0].function.name == call.function.name
        assert "".join(part.function.arguments for part in parts) == call.function.arguments
        call.id = "call_of_another_server"
        talk = [*SHORT, whole.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        assert ask(client, **options | {"messages": talk, "tool_choice": "none", "max_tokens": 3}).choices


def test_a_model_without_tools_says_so(byte_tokenizer):
    service = tiny_service(byte_tokenizer, policy=False)
    with running(service) as address:
        body = {"model": "tiny", "messages": SHORT, "tools": [CLOCK]}
        error = httpx.post(f"{address}/v1/chat/completions", json=body).json()["error"]
        assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
        assert "chat template has no tools" in error["message"]


ENDLESS = schema(allOf=[{"type": "string", "pattern": f"a.{{{distance}}}b"} for distance in range(3, 40)])
"""What `llguidance` would compile for hours, within all its limits."""


def test_a_grammar_that_explodes_is_ended_and_holds_nobody_up(service, client, monkeypatch):
    """Also where there are as many as are compiled at once: others then wait, and without a grammar nobody does."""
    assert text(client, **outputs(regex="ab")) == "ab"  # the processes run
    monkeypatch.setattr(constraints, "COMPILE_SECONDS", 3.0)
    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(text, client, **ENDLESS) for _ in range(2)]
        until(lambda: service.constraints._idle.empty())
        assert text(client, max_tokens=1)
        assert not any(one.done() for one in slow)
        waits = pool.submit(text, client, **outputs(regex="a"))
        for one in slow:
            with pytest.raises(openai.BadRequestError, match="not compiled in 3 s") as refused:
                one.result()
            assert (refused.value.code, refused.value.param) == ("grammar_too_slow", SCHEMA)
        assert waits.result() == "a"
    assert text(client, **outputs(regex="b")) == "b"  # another process has taken its place
