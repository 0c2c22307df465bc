"""The API over a real port, with the official client: what it answers."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from helpers.models import tiny_model
from helpers.serving import CHAT, LONG, ask, running, tiny_service


def test_a_chat_answers_and_reports_what_it_spent(client):
    answer = ask(client, max_tokens=80, logit_bias={"2": -100})
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 80
    compute = answer.usage.compute
    assert compute["budget"] == "keep=0.6"
    assert compute["requested"]["net"] == pytest.approx(0.6)
    for axis, share in compute["realised"].items():
        assert share == pytest.approx(compute["requested"][axis], abs=0.05), axis
    assert 0 < compute["bytes"] < 1.5
    dense = ask(client, budget=None).usage.compute
    assert (dense["budget"], dense["realised"]["net"]) == (None, 1)


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
    for policy in ("policy", "static", "dense"):
        budget = None if policy == "dense" else "keep=0.7"
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
        for budget, tokens, text in [
            ("keep=0.5", 60, LONG),
            (0.95, 30, LONG * 2),
            (None, 45, "hi" * 60),
            ("keep=0.7", 50, LONG[::-1]),
        ]
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
    pieces = client.completions.create(model="tiny", prompt=LONG, max_tokens=0, echo=True, stream=True)
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == LONG
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


def test_models_tokenize_health_and_metrics(address, client):
    (model,) = client.models.list().data
    assert model.efficiency["policies"] == ["policy", "dense", "static"]
    assert client.models.retrieve("tiny").id == "tiny"
    counted = httpx.post(f"{address}/tokenize", json={"prompt": "héllo"}).json()
    assert counted["count"] == len(counted["tokens"]) == 6
    chat = httpx.post(f"{address}/tokenize", json={"messages": CHAT}).json()
    assert chat["count"] == ask(client, max_tokens=1).usage.prompt_tokens
    assert httpx.post(f"{address}/tokenize", json={}).status_code == 400
    health = httpx.get(f"{address}/health").json()
    assert (health["status"], health["limits"]["max_rows"]) == ("ready", 8)
    text = httpx.get(f"{address}/metrics").text
    for name in (
        "solm_rows_running 0.0",
        'solm_requests_total{route="/v1/models"',
        'solm_class_dial{priority="normal"} 1.0',
    ):
        assert name in text, name


def test_a_server_without_a_policy_offers_static(byte_tokenizer):
    with running(tiny_service(byte_tokenizer, policy=False)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        (model,) = client.models.list().data
        assert model.efficiency["default_policy"] == "static"
        messages = [{"role": "user", "content": LONG}]
        answer = ask(client, messages=messages, budget="keep=0.7", max_tokens=100, logit_bias={"2": -100})
        assert answer.usage.compute["realised"]["net"] == pytest.approx(0.7, abs=0.05)
        with pytest.raises(openai.BadRequestError, match="choose one of dense, static"):
            ask(client, efficiency={"policy": "policy"})
