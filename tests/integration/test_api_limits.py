"""Every limit of a server at its edge, what it refuses by type, and what goes wrong before a request is one."""

import socket

import httpx
import pytest

from helpers.serving import LONG, running, tiny_service, until
from solm.serving import http, settings
from solm.serving.http import OPEN

CHAT_BODY = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
TEXT_BODY = {"model": "tiny", "prompt": "a", "max_tokens": 1}


def post(address, change):
    """What the server says to a small request with `change`: to a completion where it has a prompt or a number of
    log-probabilities, else to a chat."""
    plain = "prompt" in change or type(change.get("logprobs")) is int
    body, path = (TEXT_BODY, "completions") if plain else (CHAT_BODY, "chat/completions")
    return httpx.post(f"{address}/v1/{path}", json=body | change, timeout=60)


EDGES = {
    "n": (lambda count: {"n": count}, settings.MAX_CHOICES, "n"),
    "prompts": (lambda count: {"prompt": ["a"] * count}, settings.MAX_PROMPTS, "prompt"),
    "stop_strings": (lambda count: {"stop": ["zz"] * count}, settings.MAX_STOPS, "stop"),
    "stop_characters": (lambda count: {"stop": "z" * count}, settings.MAX_STOP_LENGTH, "stop"),
    "logprobs": (lambda count: {"logprobs": count}, settings.MAX_LOGPROBS, "logprobs"),
    "top_logprobs": (
        lambda count: {"logprobs": True, "top_logprobs": count}, settings.MAX_LOGPROBS, "top_logprobs",
    ),
    "deadline_ms": (
        lambda count: {"efficiency": {"deadline_ms": count}}, settings.MAX_DEADLINE_MS, "efficiency.deadline_ms",
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


def test_as_many_messages_as_are_allowed_are_refused_only_for_their_length(address):
    messages = [{"role": "user", "content": ""}] * settings.MAX_MESSAGES
    for some, reason in ((messages, "context_length_exceeded"), ([*messages, messages[0]], "invalid_value")):
        assert post(address, {"messages": some}).json()["error"]["code"] == reason


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


def test_every_route_needs_a_key_but_health(byte_tokenizer):
    """Every one that the application has, also those that are not documented."""
    service = tiny_service(byte_tokenizer)
    with running(service, keys=["right"]) as address:
        document = httpx.get(f"{address}/openapi.json", headers={"Authorization": "Bearer right"}).json()
        routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
        routes += [("get", path) for path in ("/", "/openapi.json", "/static/page.js", "/static/page.css")]
        assert len(routes) == 16
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
