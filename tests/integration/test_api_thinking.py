"""The API of a model that thinks before it answers: what is thinking, what is the answer, and what each may spend."""

import json

import httpx
import openai
import pytest

from helpers.serving import CHAT, running, tiny_service
from helpers.thinking import OPEN, TEMPLATE, follow

THOUGHT, ANSWER = "They ask for a café.\n\nSo: 2 < 3, and </thin air>.", "Yes.\n\n**It is** there."
REPLY = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"properties": {"n": {"type": "integer"}}}}}]


@pytest.fixture(scope="module", params=["answers", "opened"])
def server(request, byte_tokenizer):
    """The tiny model under a template like Qwen 3's, whose replies open the thinking or whose prompts do."""
    opened = request.param == "opened"
    with running(tiny_service(byte_tokenizer, template=OPEN if opened else TEMPLATE)) as address:
        yield address, "<think>\n" if opened else ""


@pytest.fixture
def client(server, monkeypatch):
    address, before = server
    follow(monkeypatch, REPLY.removeprefix(before))
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client, **options):
    extra = options.pop("extra", {})
    return client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=200, extra_body=extra, **options)


def test_thinking_is_apart_from_the_answer(client):
    answer = ask(client)
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, ANSWER)
    assert answer.choices[0].finish_reason == "stop"
    thought = answer.usage.completion_tokens_details.reasoning_tokens
    after = len(f"\n\n{ANSWER}".encode()) + 1  # and the end token
    assert thought == answer.usage.completion_tokens - after


def test_a_stream_has_the_thinking_first(client):
    deltas = [piece.choices[0].delta.model_dump(exclude_none=True) for piece in ask(client, stream=True)]
    thought = [delta["reasoning_content"] for delta in deltas if delta.get("reasoning_content")]
    said = [delta["content"] for delta in deltas if delta.get("content")]
    assert ("".join(thought), "".join(said)) == (THOUGHT, ANSWER)
    assert len(thought) > 20
    kinds = ["reasoning_content" in delta for delta in deltas if set(delta) & {"reasoning_content", "content"}]
    last = max(place for place, kind in enumerate(kinds) if kind)
    assert not any("content" in delta and delta["content"] for delta in deltas[:last])


def test_stop_strings_end_the_answer_alone(client):
    message = ask(client, stop=["2 < 3", "**It"]).choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, "Yes.\n\n")


def test_each_phase_meets_its_budget(client):
    extra = {"efficiency": {"policy": "static", "budget": "keep=0.9", "reasoning_budget": "keep=0.6", "trace": True}}
    answer = ask(client, extra=extra)
    compute = answer.usage.compute
    for phase, asked in (("reasoning", 0.6), ("answer", 0.9)):
        assert compute[phase]["requested"]["net"] == pytest.approx(asked)
        assert compute[phase]["realised"]["mlp"] == pytest.approx(compute[phase]["requested"]["mlp"], abs=0.06), phase
    tokens = answer.choices[0].efficiency["tokens"]
    counted = sum("reasoning" in token for token in tokens)
    thought = answer.usage.completion_tokens_details.reasoning_tokens
    assert thought - len("<think") <= counted <= thought  # of a mark in pieces only the last shows what it is
    share = counted / len(tokens)
    for part in ("requested", "allowed"):
        assert compute[part]["net"] == pytest.approx(share * 0.6 + (1 - share) * 0.9, abs=0.03), part


def test_thinking_alone_may_have_a_budget(client):
    compute = ask(client, extra={"efficiency": {"policy": "static", "reasoning_budget": 0.7}}).usage.compute
    assert compute["answer"]["realised"]["bytes"] == pytest.approx(1, abs=0.01)
    assert compute["reasoning"]["realised"]["bytes"] < 0.9


def test_a_reply_without_thinking_is_all_answer(server, client, monkeypatch):
    follow(monkeypatch, f"  {ANSWER}")
    for extra in ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}):
        message = ask(client, extra=extra).choices[0].message
        assert (message.reasoning_content, message.content) == (None, f"  {ANSWER}")
    whole = httpx.post(f"{server[0]}/tokenize", json={"messages": CHAT}).json()["count"]
    closed = httpx.post(f"{server[0]}/tokenize", json={"messages": CHAT, "enable_thinking": False}).json()["count"]
    assert closed > whole


def test_thinking_that_does_not_end_is_no_answer(server, client, monkeypatch):
    follow(monkeypatch, f"<think>{THOUGHT} </thi".removeprefix(server[1].strip()))
    answer = ask(client)
    assert (answer.choices[0].message.reasoning_content, answer.choices[0].message.content) == (f"{THOUGHT} </thi", "")
    pieces = [piece.choices[0].delta for piece in ask(client, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in pieces) == f"{THOUGHT} </thi"


def test_a_tool_is_called_after_thinking(server, client, monkeypatch):
    call = '<tool_call>\n{"name": "find", "arguments": {"n": 3}}\n</tool_call>'
    follow(monkeypatch, f"<think>\nI call.\n</think>\n\n{call}".removeprefix(server[1]))
    for stream in (False, True):
        answer = ask(client, tools=TOOLS, stream=stream)
        if not stream:
            message = answer.choices[0].message
            assert (message.reasoning_content, message.content) == ("I call.", None)
            assert json.loads(message.tool_calls[0].function.arguments) == {"n": 3}
            assert answer.choices[0].finish_reason == "tool_calls"
            continue
        deltas = [piece.choices[0].delta for piece in answer]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        assert calls[0].function.name == "find"
        assert "".join(call.function.arguments for call in calls) == '{"n": 3}'
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "I call."


def test_a_grammar_holds_for_the_answer(server, client, monkeypatch):
    if not server[1]:
        pytest.skip("the mark is no single token here, so a reply under a grammar does not begin with it")
    follow(monkeypatch, "Is it?\n</think>")
    message = ask(client, extra={"structured_outputs": {"choice": ["maybe", "never"]}}).choices[0].message
    assert message.reasoning_content == "Is it?"
    assert message.content in ("maybe", "never")


def test_the_responses_api_has_an_item_of_thinking(client):
    whole = client.responses.create(model="tiny", input="hi", max_output_tokens=200)
    thought, message = whole.output
    assert (thought.type, thought.content[0].type, thought.content[0].text) == ("reasoning", "reasoning_text", THOUGHT)
    assert message.content[0].text == ANSWER
    assert whole.output_text == ANSWER
    assert whole.usage.output_tokens_details.reasoning_tokens > len(THOUGHT)
    events = list(client.responses.create(model="tiny", input="hi", max_output_tokens=200, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == THOUGHT
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    again = [{"role": "user", "content": "hi"}, *whole.output, {"role": "user", "content": "and?"}]
    assert client.responses.create(model="tiny", input=again, max_output_tokens=5).usage.input_tokens > len(REPLY)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"efficiency": {"thinking_budget": 0.5}}, "efficiency.thinking_budget"),
        ({"efficiency": {"reasoning_budget": 2.0}}, "efficiency.reasoning_budget"),
        ({"efficiency": {"reasoning_budget": "keep=0.01"}}, "efficiency.reasoning_budget"),
        ({"efficiency": {"reasoning_budget": 0.5, "policy": "dense"}}, "efficiency.reasoning_budget"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs"),
        ({"enable_thinking": "no"}, "enable_thinking"),
    ],
)
def test_what_is_wrong_is_named(server, body, field):
    asked = {"model": "tiny", "messages": CHAT, "max_tokens": 5} | body
    answer = httpx.post(f"{server[0]}/v1/chat/completions", json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


def test_a_model_that_does_not_think_has_no_such_phase(byte_tokenizer):
    with running(tiny_service(byte_tokenizer, policy=False)) as address:
        for body, field in (
            ({"efficiency": {"reasoning_budget": 0.7}}, "efficiency.reasoning_budget"),
            ({"enable_thinking": True}, "chat_template_kwargs.enable_thinking"),
        ):
            asked = {"model": "tiny", "messages": CHAT, "max_tokens": 5} | body
            answer = httpx.post(f"{address}/v1/chat/completions", json=asked)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
        plain = {"model": "tiny", "prompt": "hi", "efficiency": {"reasoning_budget": 0.7}}
        assert httpx.post(f"{address}/v1/completions", json=plain).status_code == 400
