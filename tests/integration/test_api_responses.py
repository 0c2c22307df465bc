"""`/v1/responses` with the official client: the reply of a chat in another form, whole and streamed, without state."""

import json

import httpx
import openai
import pytest
from pydantic import BaseModel

from helpers.serving import CHAT, LONG, TOOL_TEMPLATE, ask, running, tiny_service

SAME = {"model": "tiny", "temperature": 0, "extra_body": {"seed": 3, "efficiency": {"budget": "keep=0.6"}}}
SPLIT = {"instructions": CHAT[0]["content"], "input": LONG}


def test_a_response_says_what_a_chat_says(client):
    chat = ask(client, temperature=0)
    for asked in (SPLIT, {"input": CHAT}):
        response = client.responses.create(max_output_tokens=40, **SAME, **asked)
        assert response.output_text == chat.choices[0].message.content
        assert response.status == {"length": "incomplete", "stop": "completed"}[chat.choices[0].finish_reason]
        assert response.usage.output_tokens == chat.usage.completion_tokens
        assert response.usage.input_tokens == chat.usage.prompt_tokens
        assert response.usage.total_tokens == chat.usage.total_tokens
        assert response.usage.compute["realised"] == chat.usage.compute["realised"]
        assert response.id.startswith("resp_")
        assert (response.model, response.previous_response_id, response.error) == ("tiny", None, None)
    traced = {"seed": 3, "efficiency": {"budget": "keep=0.6", "trace": True}}
    short = client.responses.create(max_output_tokens=3, **SPLIT, **SAME | {"extra_body": traced})
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert len(short.efficiency["tokens"]) == short.usage.output_tokens


def test_a_conversation_goes_on_with_what_was_said(client):
    first = client.responses.create(max_output_tokens=6, **SAME, **SPLIT)
    items = [{"role": "user", "content": LONG}, *first.output, {"role": "user", "content": "And then?"}]
    second = client.responses.create(input=items, max_output_tokens=6, **SAME)
    messages = [
        {"role": "user", "content": LONG}, {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
    ]  # fmt: skip
    assert second.output_text == ask(client, messages=messages, temperature=0, max_tokens=6).choices[0].message.content


class Verdict(BaseModel):
    """Finite, so that even a random model comes to its end."""

    right: bool


def test_a_class_of_pydantic_is_what_comes_back(client, address):
    pytest.importorskip("llguidance")
    for temperature in (0, 1.5):
        asked = SAME | {"temperature": temperature}
        response = client.responses.parse(input=LONG, text_format=Verdict, max_output_tokens=40, **asked)
        assert isinstance(response.output_parsed, Verdict)


def test_a_stream_has_the_events_of_openais_api(client):
    whole = client.responses.create(max_output_tokens=20, **SAME, **SPLIT)
    events = list(client.responses.create(max_output_tokens=20, stream=True, **SAME, **SPLIT))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", f"response.{whole.status}",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage == whole.usage


WEATHER = {
    "type": "function", "name": "weather", "description": "What it is like outside.",
    "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def caller(byte_tokenizer):
    """A client of a model that knows tools."""
    pytest.importorskip("llguidance")
    with running(tiny_service(byte_tokenizer, template=TOOL_TEMPLATE, policy=False)) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


CALLING = {
    "model": "tiny", "input": "Paris?", "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False,
    "max_output_tokens": 200, "extra_body": {"seed": 5},
}  # fmt: skip


def test_tools_are_called_and_their_results_come_back(caller):
    first = caller.responses.create(**CALLING)
    (call,) = first.output
    assert (first.status, call.type, call.name, call.status) == ("completed", "function_call", "weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert (first.tools[0].name, first.tool_choice, first.parallel_tool_calls) == ("weather", "required", False)
    assert first.output_text == ""
    talk = [
        {"role": "user", "content": "Paris?"}, *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]  # fmt: skip
    second = caller.responses.create(**CALLING | {"input": talk, "tool_choice": "none", "max_output_tokens": 4})
    messages = [
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": call.arguments}}]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
    ]  # fmt: skip
    chat = caller.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    assert [item.type for item in second.output] == ["message"]
    named = caller.responses.create(**CALLING | {"tool_choice": {"type": "function", "name": "weather"}})
    assert named.tool_choice.name == "weather"
    cut = caller.responses.create(**CALLING | {"max_output_tokens": 45})
    assert (cut.status, cut.output[-1].status) == ("incomplete", "incomplete")


def test_calls_are_streamed(caller):
    whole = caller.responses.create(**CALLING).output[0]
    events = list(caller.responses.create(stream=True, **CALLING))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.function_call_arguments.delta")
    assert deltas > 3
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        *["response.function_call_arguments.delta"] * deltas, "response.function_call_arguments.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    (call,) = events[-1].response.output
    assert (call.name, call.arguments) == (whole.name, whole.arguments)
    assert "".join(event.delta for event in events if event.type.endswith("arguments.delta")) == call.arguments
    assert events[2].item.call_id == events[-2].item.call_id == call.call_id
    assert {event.item_id for event in events if "arguments" in event.type} == {call.id}
    with caller.responses.stream(**CALLING) as stream:
        for _ in stream:
            pass
    assert stream.get_final_response().output[0].arguments == call.arguments


WRONG = {
    "input": [None, [], [{"role": "user"}], [{"type": "function_call"}], {}, [{"type": "reasoning"}], [{"type": ["a"]}],
              [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "["}],
              [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]],
    "instructions": [5],
    "max_output_tokens": [0, "5", 1 << 40],
    "store": [True],
    "previous_response_id": ["resp_1", 5],
    "background": [True],
    "truncation": ["auto"],
    "text": [
        {"format": {"type": "magic"}}, 5, {"verbosity": "low"}, {"format": {"type": "json_schema", "name": "a"}},
        {"format": {"type": "json_schema", "name": "a", "schema": {"type": "magic"}}},
    ],
    "efficiency": [{"budget": 7}],
    "tools": [{}, [{"type": "web_search"}], [{"type": "function", "name": "a"}] * 2],
    "tool_choice": ["auto", {"type": "function", "name": "a"}],
    "conversation": ["conv_1"], "include": [["x"]], "magic": [1],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(address, name):
    for value in WRONG[name]:
        answer = httpx.post(f"{address}/v1/responses", json={"model": "tiny", "input": "a", name: value})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), (value, answer.text)
        assert error["param"].split(".")[0] == name, (value, error)
    if name in ("store", "previous_response_id"):
        assert "nothing is ever stored" in error["message"]


def test_other_refusals(client):
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="a", model="other")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError, match="exceed"):
        client.responses.create(input="a" * 600, model="tiny")
