"""Requests that the API refuses: malformed, out of range, too many, and without a key."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from helpers.serving import CHAT, ask, running, slow_steps, tiny_service, until
from solm.serving.settings import MAX_BODY

BAD = {
    "not json": b"{",
    "not utf-8": b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
    "deep": b"[" * 100_000,
    "nan": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "infinite": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_p": Infinity}',
    "huge integer": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1' + b"0" * 5000 + b"}",
    "lone surrogate": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
}  # fmt: skip


WRONG = {
    "negative": ({"max_tokens": -1}, "max_tokens"),
    "temperature": ({"temperature": 2.5}, "temperature"),
    "top_p": ({"top_p": 0}, "top_p"),
    "empty stop": ({"stop": ""}, "stop"),
    "logprobs off": ({"top_logprobs": 2}, "top_logprobs"),
    "role": ({"messages": [{"role": "function", "content": "a"}]}, "messages.0.role"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "too low": ({"efficiency": {"budget": 0.05}}, "efficiency.budget"),
    "too high": ({"efficiency": {"budget": 1.5}}, None),
    "axis": ({"efficiency": {"budget": {"attention": 0.001}}}, "efficiency.budget"),
    "no axis": ({"efficiency": {"budget": {"attention": 0.5, "heads": 1}}}, "efficiency.budget.heads"),
    "axis beyond": ({"efficiency": {"budget": {"attention": 2}}}, "efficiency.budget.attention"),
    "budget as text": ({"efficiency": {"budget": "0.6"}}, "efficiency.budget"),
    "number as text": ({"max_tokens": "5"}, "max_tokens"),
    "true as a number": ({"n": True}, "n"),
    "text as true": ({"stream": "true"}, "stream"),
    "one token in two ways": ({"logit_bias": {"5": 1, "05": -1}}, "logit_bias"),
    "two lengths": ({"max_tokens": 3, "max_completion_tokens": 2}, "max_completion_tokens"),
    "dense with a floor": ({"efficiency": {"policy": "dense", "floor": 0.5}}, "efficiency.floor"),
    "budget of words": ({"efficiency": {"budget": "magic"}}, "efficiency.budget"),
    "policy": ({"efficiency": {"policy": "magic"}}, "efficiency.policy"),
    "limit of dense": ({"efficiency": {"policy": "dense", "deadline_ms": 9}}, "efficiency.deadline_ms"),
    "dense": ({"efficiency": {"policy": "dense", "budget": 0.6}}, "efficiency.budget"),
    "priority": ({"efficiency": {"priority": "urgent"}}, "efficiency.priority"),
    "floor": ({"efficiency": {"floor": 1.5}}, None),
    "floor in milliseconds": ({"efficiency": {"floor": "ms=5"}}, "efficiency.floor"),
    "floor of nothing": ({"efficiency": {"floor": "magic=1"}}, "efficiency.floor"),
    "too long": ({"max_tokens": 600}, None),
    "prompt too long": ({"messages": [{"role": "user", "content": "a" * 600}]}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["\n\0", "x" * 10_000])
def test_what_a_client_sent_is_repeated_in_one_short_line(address, kind):
    body = {"model": "tiny", "input": [{"type": kind, "content": "a"}]}
    answer = httpx.post(f"{address}/v1/responses", json=body)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert message.startswith("input.0: ")
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("name", BAD)
def test_malformed_bodies_are_refused(address, name):
    answer = httpx.post(
        f"{address}/v1/chat/completions", content=BAD[name], headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.text) < 1000


@pytest.mark.parametrize("name", WRONG)
def test_invalid_parameters_are_refused_by_name(address, name):
    change, param = WRONG[name]
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 2} | change
    answer = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param


def test_other_refusals(address, client):
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        ask(client, model="other")
    for body, word in [({"prompt": ""}, "empty"), ({"prompt": [259]}, "token 259"), ({"prompt": []}, "prompt")]:
        with pytest.raises(openai.BadRequestError, match=word):
            client.post("/completions", body={"model": "tiny", **body}, cast_to=object)
    large = httpx.post(
        f"{address}/v1/completions", content=b'"' + b"a" * MAX_BODY, headers={"Content-Type": "application/json"}
    )
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert httpx.post(f"{address}/v1/completions", content=b"{}").status_code == 400
    assert httpx.get(f"{address}/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{address}/v1/completions").status_code == 405
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 400


def test_requests_beyond_the_queue_are_refused_and_slow_ones_end(byte_tokenizer, monkeypatch):
    service = tiny_service(byte_tokenizer, max_rows=1, max_waiting=1, max_seconds=2)
    with running(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        slow_steps(monkeypatch, 0.1)
        with ThreadPoolExecutor(2) as pool:
            results = []
            for number in (1, 2):  # one that runs, and one that waits
                results.append(pool.submit(ask, client, max_tokens=300))
                until(lambda number=number: service.scheduler.busy == number)
            with pytest.raises(openai.RateLimitError) as refused:
                ask(client, max_tokens=300)
            assert refused.value.response.headers["retry-after"] == "1"
            for result in results:
                with pytest.raises(openai.InternalServerError, match="not complete after 2 s"):
                    result.result()
