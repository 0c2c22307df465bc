"""The API over a real port, with the official client: what it says, what it refuses, who gets what."""

import base64
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from helpers.models import tiny_model
from helpers.serving import CHAT, LONG, ask, gauges, running, tiny_service, until
from solm.serving.settings import MAX_BODY

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def service(byte_tokenizer):
    return tiny_service(byte_tokenizer, max_rows=8)


@pytest.fixture(scope="module")
def address(service):
    with running(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_a_chat_answers_and_reports_what_it_spent(client):
    answer = ask(client, max_tokens=80, logit_bias={"2": -100})
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 80
    compute = answer.usage.compute
    assert compute["requested"]["net"] == pytest.approx(0.6)
    for axis, share in compute["realised"].items():
        assert share == pytest.approx(compute["requested"][axis], abs=0.05), axis
    assert 0 < compute["bytes"] < 1.5
    assert ask(client, budget=None).usage.compute["realised"]["net"] == 1


def test_a_stream_says_what_a_whole_answer_says(client):
    whole = ask(client, n=2)
    pieces = list(ask(client, n=2, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for piece in pieces:
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert pieces[-1].usage.compute == whole.usage.compute
    reasons = [choice.finish_reason for piece in pieces for choice in piece.choices if choice.finish_reason]
    assert sorted(reasons) == sorted(choice.finish_reason for choice in whole.choices)


def test_the_server_says_what_generate_says(service, client):
    lm = service.lm
    ids = torch.tensor([service.tokens(LONG)])
    for policy in ("policy", "static", "random", "dense"):
        budget = None if policy == "dense" else 0.7
        answer = client.completions.create(
            model="tiny", prompt=LONG, max_tokens=50, temperature=0,
            extra_body={"efficiency": {"policy": policy, "budget": budget, "trace": True}}, seed=5,
        )  # fmt: skip
        alone = lm.generate(ids, budget=budget, policy=policy, max_new_tokens=50, seed=5)
        assert answer.choices[0].text == alone.text
        trace = answer.choices[0].efficiency["tokens"]
        assert [token["action"] for token in trace] == [token.action for token in alone.tokens]
        assert answer.usage.compute["bytes"] == pytest.approx(alone.compute.bytes)


def test_a_reply_does_not_depend_on_who_shares_the_batch(client):
    orders = [
        {"budget": budget, "max_tokens": tokens, "temperature": 0, "messages": [{"role": "user", "content": text}]}
        for budget, tokens, text in [(0.5, 60, LONG), (0.9, 30, LONG * 2), (None, 45, "hi" * 60), (0.7, 50, LONG[::-1])]
    ]
    alone = [ask(client, **order).choices[0].message.content for order in orders]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda order: ask(client, **order).choices[0].message.content, orders * 2))
    assert together == alone * 2


def test_log_probabilities_and_echo_are_the_models_own(service, client):
    answer = client.completions.create(
        model="tiny", prompt=LONG, max_tokens=3, temperature=0, logprobs=2, echo=True
    ).choices[0]  # fmt: skip
    ids = service.tokens(LONG)
    assert answer.text.startswith(LONG)
    assert len(answer.logprobs.tokens) == len(ids) + 3
    logits = tiny_model("llama", torch.float32)(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    expected = [None, *(float(logits[place, token]) for place, token in enumerate(ids[1:]))]
    assert answer.logprobs.token_logprobs[0] is None
    assert answer.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected[1:], abs=1e-4)
    best = answer.logprobs.top_logprobs[5]
    assert max(best.values()) == pytest.approx(float(logits[4].max()), abs=1e-4)
    only = client.completions.create(model="tiny", prompt=LONG, max_tokens=0, logprobs=0, echo=True)
    assert only.choices[0].text == LONG
    assert only.usage.completion_tokens == 0
    chat = ask(client, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert len(chat) == 4
    assert all(len(token.top_logprobs) == 3 for token in chat)
    assert all(token.logprob <= token.top_logprobs[0].logprob for token in chat)


def test_lists_of_prompts_and_token_ids(service, client):
    ids = service.tokens(LONG)
    texts = client.completions.create(model="tiny", prompt=[LONG, "other"], max_tokens=5, temperature=0, n=2)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert texts.choices[0].text == texts.choices[1].text
    tokens = client.completions.create(model="tiny", prompt=[ids, ids], max_tokens=5, temperature=0)
    assert tokens.choices[0].text == texts.choices[0].text == tokens.choices[1].text


def test_stop_strings_end_a_reply_and_are_not_shown(client):
    text = ask(client, temperature=0, max_tokens=60).choices[0].message.content
    stop = text[20:24]
    for stream in (False, True):
        answer = ask(client, temperature=0, max_tokens=60, stop=[stop, "never said"], stream=stream)
        if stream:
            said = "".join(piece.choices[0].delta.content or "" for piece in answer)
        else:
            said = answer.choices[0].message.content
            assert answer.choices[0].finish_reason == "stop"
        assert said == text[: text.index(stop)]


def test_a_bias_decides_and_a_stop_token_ends(service, client):
    answer = ask(client, budget=None, max_tokens=5, temperature=0, logit_bias={"70": 100})
    assert answer.choices[0].message.content == service.lm.tokenizer.decode([70]) * 5
    assert answer.choices[0].finish_reason == "length"
    ended = ask(client, budget=None, max_tokens=5, temperature=0, logit_bias={"2": 100})
    assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 1)


def test_a_prompt_that_was_read_before_is_not_read_again(client):
    messages = [{"role": "system", "content": LONG * 3}, {"role": "user", "content": "first"}]
    first = ask(client, messages=messages, temperature=0)
    again = ask(client, messages=messages, temperature=0)
    assert again.usage.prompt_tokens_details.cached_tokens > len(LONG) * 3 - 16
    assert again.choices[0].message.content == first.choices[0].message.content
    other = ask(client, messages=[messages[0], {"role": "user", "content": "second"}])
    assert len(LONG) * 3 - 16 < other.usage.prompt_tokens_details.cached_tokens < other.usage.prompt_tokens


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
    "unsupported": ({"tools": []}, "tools"),
    "user": ({"user": "me"}, "user"),
    "penalty": ({"presence_penalty": 0.5}, "presence_penalty"),
    "negative": ({"max_tokens": -1}, "max_tokens"),
    "temperature": ({"temperature": 2.5}, "temperature"),
    "top_p": ({"top_p": 0}, "top_p"),
    "n": ({"n": 9}, "n"),
    "stops": ({"stop": ["a"] * 5}, "stop"),
    "empty stop": ({"stop": ""}, "stop"),
    "logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "logprobs off": ({"top_logprobs": 2}, "top_logprobs"),
    "bias": ({"logit_bias": {"259": 1}}, "logit_bias"),
    "bias value": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "bias key": ({"logit_bias": {"x": 1}}, None),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
    "no messages": ({"messages": []}, "messages"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "too low": ({"efficiency": {"budget": 0.05}}, "efficiency.budget"),
    "too high": ({"efficiency": {"budget": 1.5}}, None),
    "axis": ({"efficiency": {"budget": {"attention": 0.001}}}, "efficiency.budget"),
    "policy": ({"efficiency": {"policy": "magic"}}, None),
    "dense": ({"efficiency": {"policy": "dense", "budget": 0.6}}, "efficiency.budget"),
    "too long": ({"max_tokens": 600}, None),
    "prompt too long": ({"messages": [{"role": "user", "content": "a" * 600}]}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_request_is_refused(address, name):
    answer = httpx.post(
        f"{address}/v1/chat/completions", content=BAD[name], headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.text) < 1000


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_refused_by_name(address, client, name):
    change, param = WRONG[name]
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 2} | change
    answer = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body=body, cast_to=object)


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


def test_models_tokenize_health_and_metrics(address, client):
    (model,) = client.models.list().data
    assert model.efficiency["policies"] == ["policy", "dense", "static", "random"]
    assert client.models.retrieve("tiny").id == "tiny"
    counted = httpx.post(f"{address}/tokenize", json={"prompt": "héllo"}).json()
    assert counted["count"] == len(counted["tokens"]) == 6
    chat = httpx.post(f"{address}/tokenize", json={"messages": CHAT}).json()
    assert chat["count"] == ask(client, max_tokens=1).usage.prompt_tokens
    assert httpx.post(f"{address}/tokenize", json={}).status_code == 400
    health = httpx.get(f"{address}/health").json()
    assert (health["status"], health["limits"]["max_rows"]) == ("ready", 8)
    text = httpx.get(f"{address}/metrics").text
    for name in ("solm_rows_running 0.0", 'solm_requests_total{route="/v1/models"', "solm_governor_dial 1.0"):
        assert name in text, name


def test_two_hundred_at_once_all_get_their_own_answer(service, client):
    rng = random.Random(0)
    orders = [
        {
            "messages": [{"role": "user", "content": f"secret {number} " * rng.randint(1, 20)}], "temperature": 0,
            "max_tokens": rng.randint(1, 24), "budget": rng.choice([None, 0.5, 0.7, 0.9]), "stream": rng.random() < 0.5,
        }
        for number in range(200)
    ]  # fmt: skip

    def one(order):
        answer = ask(client, **order)
        if order["stream"]:
            return "".join(piece.choices[0].delta.content or "" for piece in answer)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(200) as pool:
        together = list(pool.map(one, orders))
    some = rng.sample(range(200), 12)
    assert [together[number] for number in some] == [one(orders[number]) for number in some]
    until(lambda: gauges(service) == (0, 0, 0))


def test_five_hundred_hang_up_and_nothing_is_left(service, address, client):
    rng = random.Random(1)

    def hang_up(number):
        body = {"model": "tiny", "messages": CHAT, "max_tokens": 350, "stream": number % 2 == 0}
        body["logit_bias"] = {"2": -100}
        body["efficiency"] = {"budget": 0.6}
        # Whoever streams leaves after some lines; the others leave at any moment, read or not.
        patience = 60 if body["stream"] else rng.uniform(0.01, 0.5)
        try:
            with (
                httpx.Client(timeout=httpx.Timeout(60, read=patience)) as http,
                http.stream("POST", f"{address}/v1/chat/completions", json=body) as answer,
            ):
                for count, _ in enumerate(answer.iter_lines()):
                    if count > rng.randint(0, 6):
                        return
        except httpx.HTTPError:
            return

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(hang_up, range(500)))
    until(lambda: gauges(service) == (0, 0, 0), 120)
    assert service.scheduler._batch.session is None
    assert service.metrics.registry.get_sample_value("solm_rows_ended_total", {"reason": "cancelled"}) > 250
    assert ask(client).choices[0].message.content


def test_an_error_in_one_row_fails_that_request_alone(service, client, monkeypatch):
    from solm.serving.rows import Row

    take = Row.take

    def broken(self, logits, step=None):
        if self.job.seed == 666 and len(self.text.ids) == 3:
            raise RuntimeError("injected")
        take(self, logits, step)

    monkeypatch.setattr(Row, "take", broken)
    with ThreadPoolExecutor(4) as pool:
        fine = [pool.submit(ask, client, seed=seed, logit_bias={"2": -100}) for seed in (1, 2)]
        bad = pool.submit(ask, client, seed=666)
        streamed = pool.submit(lambda: list(ask(client, seed=666, stream=True)))
        with pytest.raises(openai.InternalServerError, match="others go on"):
            bad.result()
        with pytest.raises(openai.APIError, match="others go on"):
            streamed.result()
        assert all(answer.result().usage.completion_tokens == 40 for answer in fine)
    until(lambda: gauges(service) == (0, 0, 0))


def test_a_pass_that_fails_ends_its_rows_and_the_server_goes_on(service, client, monkeypatch):
    from solm.backends.torch.session import Session

    with monkeypatch.context() as patch:
        patch.setattr(Session, "extend", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            ask(client)
    assert ask(client).usage.completion_tokens == 40


def test_requests_beyond_the_queue_are_refused_and_slow_ones_end(byte_tokenizer):
    service = tiny_service(byte_tokenizer, max_rows=1, max_waiting=1, max_seconds=0.5)
    with running(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        step = service.scheduler._batch.step
        service.scheduler._batch.step = lambda tokens: (time.sleep(0.1), step(tokens))[1]
        with ThreadPoolExecutor(6) as pool:
            results = [pool.submit(ask, client, max_tokens=300) for _ in range(6)]
            errors = [result.exception() for result in results]
        kinds = sorted(type(error).__name__ for error in errors)
        assert kinds.count("RateLimitError") == 4, kinds
        assert kinds.count("InternalServerError") == 2, kinds
        assert any("not complete after 0.5 s" in str(error) for error in errors)
        refused = next(error for error in errors if isinstance(error, openai.RateLimitError))
        assert refused.response.headers["retry-after"] == "1"


def test_keys_guard_every_route_but_health(byte_tokenizer):
    service = tiny_service(byte_tokenizer)
    with running(service, keys=["alpha", "bëta"]) as address:
        routes = ["/", "/static/page.js", "/v1/models", "/metrics", "/openapi.json", "/nothing"]
        for path in routes:
            assert httpx.get(f"{address}{path}").status_code == 401, path
        assert httpx.post(f"{address}/v1/completions", json={}).status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200

        def status(header):
            return httpx.get(f"{address}/v1/models", headers={"Authorization": header}).status_code

        assert status("Bearer alpha") == 200
        assert status(b"Bearer b\xc3\xabta") in (200, 401)
        basic = base64.b64encode(b"anyone:alpha").decode()
        assert status(f"Basic {basic}") == 200
        for bad in ("Bearer alph", "Bearer", "alpha", "Basic alpha", "Basic !!!", "Digest alpha"):
            assert status(bad) == 401, bad
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


def test_the_log_holds_no_text(address, client, caplog):
    import logging

    caplog.set_level(logging.INFO, "solm.serving.access")
    answer = ask(client, messages=[{"role": "user", "content": "a very private matter " * 4}])
    until(lambda: any("chat/completions" in record.message for record in caplog.records))
    line = json.loads(next(record.message for record in caplog.records if "chat/completions" in record.message))
    assert line["completion_tokens"] == answer.usage.completion_tokens
    assert line["net_requested"] == [0.6]
    assert "private" not in caplog.text


def test_a_server_without_a_policy_offers_static(byte_tokenizer):
    with running(tiny_service(byte_tokenizer, policy=False)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        (model,) = client.models.list().data
        assert model.efficiency["default_policy"] == "static"
        messages = [{"role": "user", "content": LONG}]
        answer = ask(client, messages=messages, budget=0.7, max_tokens=100, logit_bias={"2": -100})
        assert answer.usage.compute["realised"]["net"] == pytest.approx(0.7, abs=0.05)
        with pytest.raises(openai.BadRequestError, match="dense, static, random"):
            ask(client, efficiency={"policy": "policy"})


def test_stopping_lets_requests_finish(byte_tokenizer):
    service = tiny_service(byte_tokenizer, drain_seconds=30)
    pieces = []
    with running(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = ask(client, stream=True, max_tokens=150, logit_bias={"2": -100})
        pieces.append(next(iter(stream)))
        reading = threading.Thread(target=lambda: pieces.extend(stream))
        reading.start()
    reading.join()
    assert pieces[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("mode", [POSITIVE, NEGATIVE])
def test_requests_made_from_the_document_get_what_it_promises(address, mode):
    """Budgets, lengths and token ids depend on one another and on the model, so well-formed requests may be refused."""
    schema, seen = schemathesis.openapi.from_url(f"{address}/openapi.json"), set()
    for operation in (found.ok() for found in schema.get_all_operations()):
        if mode is NEGATIVE and not operation.body:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(case):
            if mode is POSITIVE and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "tiny"
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            assert answer.status_code < 500, answer.text
            seen.add(case.operation.path)

        check()
    assert seen == {"/v1/chat/completions", "/v1/completions", "/tokenize"} | (
        {"/v1/models", "/v1/models/{name}", "/health", "/metrics"} if mode is POSITIVE else set()
    )
