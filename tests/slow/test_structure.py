"""A real model that calls tools and fits schemas, through the official client."""

import json
import os
import signal
from pathlib import Path

import openai
import pytest
from pydantic import BaseModel

from helpers.serving import start

pytest.importorskip("llguidance")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather", "description": "Get the current weather in a city.",
            "parameters": {
                "type": "object", "required": ["city", "unit"], "additionalProperties": False,
                "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "description": "Get the time of day."}},
]  # fmt: skip
ASKED = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


class Person(BaseModel):
    """A schema as the client makes it of a class."""

    name: str
    age: int
    hobbies: list[str]


@pytest.fixture(scope="module")
def client():
    folder = os.environ.get("SOLM_MODELS")
    files = [] if folder is None else sorted(Path(folder).glob("qwen2.5-coder-0.5b*.gguf"))
    if not files:
        pytest.skip("SOLM_MODELS names no folder with qwen2.5-coder-0.5b")
    process, address = start("--model", files[0], "--name", "qwen", "--backend", "cpu", "--max-rows", "4")
    try:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_a_class_of_pydantic_is_filled_in(client, temperature):
    answer = client.chat.completions.parse(
        model="qwen", temperature=temperature, seed=1, max_tokens=200, response_format=Person,
        messages=[{"role": "user", "content": "Describe Ada, who is 36, and likes chess and long walks, as JSON."}],
    ).choices[0]  # fmt: skip
    assert answer.finish_reason == "stop"
    assert temperature or (answer.message.parsed.name, answer.message.parsed.age) == ("Ada", 36)


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_tools_are_called_and_streamed(client, choice):
    options = {
        "model": "qwen", "messages": ASKED, "tools": TOOLS, "tool_choice": choice, "temperature": 0, "max_tokens": 120,
        "parallel_tool_calls": False,
    }  # fmt: skip
    whole = client.chat.completions.create(**options).choices[0]
    with client.chat.completions.stream(**options) as stream:
        kinds = {event.type for event in stream}
        last = stream.get_final_completion().choices[0]
    assert (last.message.content, last.finish_reason) == (whole.message.content, whole.finish_reason)
    if choice == "auto" and whole.message.tool_calls is None:
        assert whole.message.content
        return
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == (
        last.message.tool_calls[0].function.name, last.message.tool_calls[0].function.arguments,
    )  # fmt: skip
    assert "tool_calls.function.arguments.delta" in kinds
    arguments = json.loads(call.function.arguments)
    assert call.function.name != "get_weather" or set(arguments) == {"city", "unit"}
    talk = [*ASKED, whole.message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}]
    after = client.chat.completions.create(**options | {"messages": talk, "tool_choice": "none"}).choices[0].message
    assert after.content
    assert after.tool_calls is None
