"""Every limit of a server at its edge, what it refuses by type, and what goes wrong before a request is one."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from helpers.serving import LONG, running, tiny_service, until
from solm.serving import http
from solm.serving.app import create_app
from solm.serving.http import OPEN
from solm.serving.settings import FIXED_LIMITS, MAX_BODY, ServeSettings

CHAT_BODY = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
TEXT_BODY = {"model": "tiny", "prompt": "a", "max_tokens": 1}


def post(address, change):
    """What the server says to a small request with `change`: to a completion where it has a prompt or a number of
    log-probabilities, else to a chat."""
    plain = "prompt" in change or type(change.get("logprobs")) is int
    body, path = (TEXT_BODY, "completions") if plain else (CHAT_BODY, "chat/completions")
    return httpx.post(f"{address}/v1/{path}", json=body | change, timeout=60)


EDGES = {
    "n": (lambda count: {"n": count}, FIXED_LIMITS["n"], "n"),
    "prompts": (lambda count: {"prompt": ["a"] * count}, FIXED_LIMITS["prompts"], "prompt"),
    "stop_strings": (lambda count: {"stop": ["zz"] * count}, FIXED_LIMITS["stop_strings"], "stop"),
    "stop_characters": (lambda count: {"stop": "z" * count}, FIXED_LIMITS["stop_characters"], "stop"),
    "logprobs": (lambda count: {"logprobs": count}, FIXED_LIMITS["logprobs"], "logprobs"),
    "top_logprobs": (
        lambda count: {"logprobs": True, "top_logprobs": count}, FIXED_LIMITS["logprobs"], "top_logprobs",
    ),
    "deadline_ms": (
        lambda count: {"efficiency": {"deadline_ms": count}}, FIXED_LIMITS["deadline_ms"], "efficiency.deadline_ms",
    ),
    "context": (lambda count: {"prompt": "a" * (count - 1)}, 512, None),
    "seed": (lambda count: {"seed": count}, (1 << 63) - 1, "seed"),
    "token": (lambda count: {"prompt": [count]}, 258, "prompt"),
    "bias": (lambda count: {"logit_bias": {str(count): 1}}, 258, "logit_bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_values_at_a_limit_are_answered_and_beyond_it_refused(address, name):
    make, most, param = EDGES[name]
    assert post(address, make(most)).status_code == 200, post(address, make(most)).text
    refused = post(address, make(most + 1))
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param


def test_limits_that_need_more_than_the_tiny_model_has(address):
    """What is too long for its context or vocabulary must be refused for that reason and not for its own limit."""
    messages = [{"role": "user", "content": ""}] * FIXED_LIMITS["messages"]
    for some, reason in ((messages, "context_length_exceeded"), ([*messages, messages[0]], "invalid_value")):
        assert post(address, {"messages": some}).json()["error"]["code"] == reason
    biases = {str(token): 0 for token in range(FIXED_LIMITS["logit_biases"])}
    for some, words in ((biases, "not among the model's 259"), (biases | {"300": 0}, "at most 300 items")):
        assert words in post(address, {"logit_bias": some}).json()["error"]["message"]
    filler = MAX_BODY - len('{"prompt":""}')
    sent = [
        httpx.post(
            f"{address}/tokenize",
            content=b'{"prompt":"' + b"a" * size + b'"}',
            headers={"Content-Type": "application/json"},
            timeout=60,  # a megabyte of tokens
        )
        for size in (filler, filler + 1)
    ]
    assert [answer.status_code for answer in sent] == [200, 413]


def test_the_limits_are_stated(address):
    """By `/health`, and in the documentation with the same values."""
    stated = httpx.get(f"{address}/health").json()["limits"]
    assert stated == ServeSettings(max_rows=8).model_dump() | {"context": 512} | FIXED_LIMITS
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text().partition("## Limits")[2]
    defaults = ServeSettings()
    for words in (
        "1 MiB", f"{FIXED_LIMITS['body_seconds']} s", f"`--max-rows` {defaults.max_rows}",
        f"max_waiting` {defaults.max_waiting}", f"max_seconds` {defaults.max_seconds:g}",
        f"{FIXED_LIMITS['n']}, {FIXED_LIMITS['prompts']}", f"{FIXED_LIMITS['messages']:,}",
        f"{FIXED_LIMITS['stop_strings']} of {FIXED_LIMITS['stop_characters']} characters",
        f"| {FIXED_LIMITS['logprobs']}, {FIXED_LIMITS['logit_biases']} |", "1 hour",
        f"| {FIXED_LIMITS['tools']}, {FIXED_LIMITS['tool_calls']} |",
        f"{FIXED_LIMITS['grammar_characters']:,} characters, compiled within {FIXED_LIMITS['grammar_seconds']:g} s",
        f"{FIXED_LIMITS['schema_depth']} levels, {FIXED_LIMITS['schema_values']:,} values",
        f"| {FIXED_LIMITS['choices']:,} |",
    ):  # fmt: skip
        assert words in page, words


TYPES = {
    "number as text": ({"max_tokens": "5"}, "max_tokens"),
    "true as a number": ({"n": True}, "n"),
    "text as true": ({"stream": "true"}, "stream"),
    "temperature as text": ({"temperature": "1"}, "temperature"),
    "fraction of a token": ({"max_tokens": 1.5}, "max_tokens"),
    "budget as text": ({"efficiency": {"budget": "0.6"}}, "efficiency.budget"),
    "no axis": ({"efficiency": {"budget": {"attention": 0.5, "heads": 1}}}, "efficiency.budget.heads"),
    "axis beyond": ({"efficiency": {"budget": {"attention": 2}}}, "efficiency.budget.attention"),
    "empty policy": ({"efficiency": {"policy": ""}}, "efficiency.policy"),
    "one token in two ways": ({"logit_bias": {"5": 1, "05": -1}}, "logit_bias"),
    "texts and tokens": ({"prompt": ["a", 1]}, "prompt.1"),
    "negative token": ({"prompt": [-1]}, "prompt.0"),
    "empty prompt among others": ({"prompt": [[1], []]}, "prompt.1"),
    "no text": ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    "two lengths": ({"max_tokens": 3, "max_completion_tokens": 2}, "max_completion_tokens"),
    "dense in a hurry": ({"efficiency": {"policy": "dense", "deadline_ms": 5}}, "efficiency.deadline_ms"),
    "dense with a floor": ({"efficiency": {"policy": "dense", "floor": 0.5}}, "efficiency.floor"),
    "long unknown name": ({"x" * 5000: 1}, "x" * 80),
    "more rows than the server has": ({"prompt": ["a"] * 64, "n": 8}, "n"),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_values_of_other_types_are_refused(address, name):
    change, param = TYPES[name]
    answer = post(address, change)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert len(error["message"]) < 300


def raw(address, content):
    connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10)
    connection.sendall(content)
    return connection


HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{"
)


def test_incomplete_bodies_time_out(address, monkeypatch, caplog):
    with raw(address, HEAD % 10**9) as connection:
        assert b" 413 " in connection.recv(64)
    monkeypatch.setattr(http, "BODY_SECONDS", 0.2)
    with raw(address, HEAD % 100) as connection:
        assert b" 408 " in connection.recv(64)
    monkeypatch.undo()
    raw(address, HEAD % 100).close()
    with raw(address, b"GARBAGE\r\n\r\n") as connection:
        assert b" 400 " in connection.recv(64)
    until(lambda: b'status="499"' in httpx.get(f"{address}/metrics").content)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_prompt_counts_once_and_text_offsets_go_on_through_a_stream(service, client):
    one, three = (client.completions.create(model="tiny", prompt=LONG, max_tokens=4, n=n).usage for n in (1, 3))
    assert one.prompt_tokens == three.prompt_tokens == len(service.tokens(LONG))
    assert three.completion_tokens > one.completion_tokens
    order = {"model": "tiny", "prompt": LONG, "max_tokens": 8, "temperature": 0, "logprobs": 0, "echo": True}
    whole = client.completions.create(**order).choices[0].logprobs
    streamed = [piece.choices[0].logprobs for piece in client.completions.create(**order, stream=True)]
    offsets = [offset for found in streamed if found is not None for offset in found.text_offset]
    assert offsets == whole.text_offset
    assert offsets == sorted(offsets)
    assert offsets[:3] == [0, 1, 2]
    assert len(offsets) > len(LONG)


def test_health_waits_until_every_policy_has_decoded(byte_tokenizer):
    service, decoded = tiny_service(byte_tokenizer), set()
    submit = service.scheduler.submit

    def submitted(jobs):
        decoded.update(job.budget.name for job in jobs)
        submit(jobs)

    service.scheduler.submit = submitted
    transport = httpx.ASGITransport(app=create_app(service))  # which does not start the application by itself

    async def go():
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as http:
            before = [await http.get("/health"), await http.post("/v1/chat/completions", json=CHAT_BODY)]
            await service.start()
            return before, [await http.get("/health"), await http.post("/v1/chat/completions", json=CHAT_BODY)]

    try:
        before, after = asyncio.run(go())
        assert decoded == set(service.budgets.policies)
        assert [answer.status_code for answer in before] == [503, 503]
        assert before[0].json()["status"] == "starting"
        assert before[1].json()["error"]["code"] == "starting"
        assert [answer.status_code for answer in after] == [200, 200]
    finally:
        service.scheduler.stop()
        service.lm.detach()


def test_every_route_needs_a_key_but_health(byte_tokenizer):
    """Every one that the application has, also those that are not documented."""
    service = tiny_service(byte_tokenizer)
    with running(service, keys=["right"]) as address:
        document = httpx.get(f"{address}/openapi.json", headers={"Authorization": "Bearer right"}).json()
        routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
        routes += [("get", path) for path in ("/", "/openapi.json", "/static/page.js", "/static/page.css")]
        assert len(routes) == 14
        for method, path in routes:
            url = address + path.replace("{name}", "tiny")
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                answer = httpx.request(method, url, headers=headers)
                if path in OPEN:
                    assert answer.status_code == 200
                    continue
                assert answer.status_code == 401, path
                assert answer.json()["error"]["type"] == "authentication_error"
                assert answer.headers["www-authenticate"].startswith("Basic")
            assert httpx.request(method, url, headers={"Authorization": "Bearer right"}).status_code != 401, path
