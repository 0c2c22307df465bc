"""What ordinary clients send beside the prompt: ways to choose tokens, notes of their own, null, and unknown fields."""

import httpx
import openai
import pytest

from helpers.serving import CHAT, LONG, ask, running, tiny_service, with_template
from solm.serving.service import Service
from solm.serving.settings import ServeSettings

NO_END = {"2": -100}


def complete(client, **options):
    extra = {name: options.pop(name) for name in ("top_k", "min_p", "repetition_penalty") if name in options}
    return client.completions.create(
        **{"model": "tiny", "prompt": LONG, "max_tokens": 24, "seed": 3, "extra_body": extra, **options}
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0, "presence_penalty": 2, "frequency_penalty": 2},
        {"temperature": 0, "repetition_penalty": 1.8},
        {"temperature": 1.5, "top_k": 40, "min_p": 0.1, "top_p": 0.9, "presence_penalty": 1, "repetition_penalty": 1.1},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_the_server_chooses_what_generate_chooses(service, client, asked):
    import torch

    options = {"top_k": 0, **asked} if asked["temperature"] else asked
    alone = service.lm.generate(torch.tensor([service.tokens(LONG)]), max_new_tokens=24, seed=3, **options)
    assert complete(client, **asked).choices[0].text == alone.text
    assert alone.text != complete(client, temperature=asked["temperature"]).choices[0].text


def test_a_reply_goes_on_after_its_end_where_that_is_ignored(client):
    """Token 2 ends a reply of this model, and is made the likeliest here."""
    asked = {"model": "tiny", "messages": CHAT, "max_tokens": 9, "logit_bias": {"2": 100}}
    answers = [
        client.chat.completions.create(**asked, extra_body={"temperature": 0, "ignore_eos": ignored})
        for ignored in (False, True)
    ]
    assert [answer.usage.completion_tokens for answer in answers] == [1, 9]
    assert [answer.choices[0].finish_reason for answer in answers] == ["stop", "length"]


def test_notes_of_the_client_and_null_change_nothing(client):
    known = ask(client, temperature=1, max_tokens=8).choices[0].message.content
    nulls = dict.fromkeys(
        ("top_p", "n", "stop", "stream", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_k",
         "min_p", "repetition_penalty", "max_completion_tokens", "stream_options", "temperature", "top_logprobs",
         "ignore_eos")
    )  # fmt: skip
    dial = {"budget": "keep=0.6"}
    for more in (
        {"user": "somebody", "metadata": {"run": "7"}, "store": False},
        {"user": None, "metadata": None, "store": None, **nulls},
        {"efficiency": dial | dict.fromkeys(("policy", "floor", "deadline_ms", "priority", "trace"))},
    ):
        body = {"model": "tiny", "messages": CHAT, "max_tokens": 8, "seed": 3, "efficiency": dial}
        answer = client.post("/chat/completions", body=body | more, cast_to=object)
        assert answer["choices"][0]["message"]["content"] == known


WRONG = {
    "presence_penalty": ["1", True, 2.5, []],
    "repetition_penalty": [0, 1e9, "1.1"],
    "top_k": [-2, 1.5, 1 << 40],
    "min_p": [-0.1, "0.1"],
    "user": [5, "x" * 600],
    "metadata": ["a", {"a": 1}, {"a": "x" * 600}, {"x" * 65: "a"}, {str(i): "" for i in range(17)}],
    "store": [True, "false"],
    "ignore_eos": ["true", 1],
    "seed": [1.5, -(1 << 64)],
    "max_completion_tokens": [0, "5", 1 << 30],
    "logit_bias": [[], {"x": 1}, {"1": 101}, {str(i): 1 for i in range(301)}],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(address, name):
    for value in WRONG[name]:
        answer = httpx.post(f"{address}/v1/chat/completions", json={"model": "tiny", "messages": CHAT, name: value})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), value
        assert error["param"].split(".")[0] == name, (value, error)
        assert len(answer.text) < 600


def test_unknown_fields_are_ignored_where_the_operator_says_so(byte_tokenizer, caplog):
    import logging

    caplog.set_level(logging.INFO, "solm.serving.access")
    body = {
        "model": "tiny", "max_tokens": 3, "temperature": 0, "guided_magic": [1, {"a": 2}], "b\r\nSet-Cookie: x": 1,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}], "nick": "me"}],
        "efficiency": {"budgett": 0.5},
    }  # fmt: skip
    service = tiny_service(byte_tokenizer, ignore_unknown=True)
    with running(service) as address:
        for path in ("/v1/chat/completions", "/v1/chat/completions?stream"):
            answer = httpx.post(f"{address}{path}", json=body | {"stream": "stream" in path})
            assert answer.status_code == 200, answer.text
            ignored = answer.headers["x-solm-ignored"].split(",")
            assert sorted(ignored) == sorted(
                ["guided_magic", "?", "messages.nick", "messages.content.cache_control", "efficiency.budgett"]
            )
        assert '"ignored": [' in caplog.text
        assert "Set-Cookie" not in caplog.text
        clean = httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
        assert "x-solm-ignored" not in clean.headers


def test_unknown_fields_are_refused_otherwise(address):
    answer = httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "a", "guided_magic": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "guided_magic")
    assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_a_context_below_the_models_is_kept(byte_tokenizer):
    with running(tiny_service(byte_tokenizer, max_model_len=100)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        assert client.models.retrieve("tiny").max_model_len == 100
        for tokens in (12, 13):
            asked = {"model": "tiny", "prompt": "a" * 88, "max_tokens": tokens, "logit_bias": NO_END}
            if tokens == 12:
                assert client.completions.create(**asked).usage.total_tokens == 100
            else:
                with pytest.raises(openai.BadRequestError, match="--max-model-len of 100"):
                    client.completions.create(**asked)


def test_guesses_leave_replies_as_they_are(cpu_lm, byte_tokenizer):
    cpu_lm.tokenizer = with_template(byte_tokenizer)
    asked = {"budget": None, "temperature": 0, "max_tokens": 200, "logit_bias": NO_END}
    with running(Service(cpu_lm, ServeSettings(), "tiny")) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        replies = {guess: ask(client, efficiency={"guess": guess}, **asked) for guess in ("off", "auto", 7)}
        usages = [reply.usage for reply in replies.values()]
        assert len({reply.choices[0].message.content for reply in replies.values()}) == 1
        assert [usage.completion_tokens for usage in usages] == [200] * 3
        assert usages[0].guessed_tokens == usages[0].accepted_tokens == 0
        assert 0 <= usages[2].accepted_tokens <= usages[2].guessed_tokens
        assert usages[2].guessed_tokens > 0
        pieces = ask(client, efficiency={"guess": 7}, stream=True, **asked)
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert text == replies["off"].choices[0].message.content
        told = httpx.get(f"{address}/metrics").text
        assert (
            f'solm_tokens_total{{kind="guessed"}} {2 * usages[2].guessed_tokens + usages[1].guessed_tokens:.1f}' in told
        )
        for wrong in (16, -1, "many"):
            message = rf"efficiency\.guess: guess must be auto, off or a number in \[0, 15\], got {wrong!r}"
            with pytest.raises(openai.BadRequestError, match=message):
                ask(client, efficiency={"guess": wrong}, **asked)


def test_a_prediction_is_guessed_from_and_a_loss_is_measured(cpu_lm, byte_tokenizer):
    cpu_lm.tokenizer = with_template(byte_tokenizer)
    letters = {"regex": "[a-z]{50}"}

    def reply(efficiency, **more):
        extra = {"efficiency": efficiency, "structured_outputs": letters}
        return ask(client, temperature=0, max_tokens=60, extra_body=extra, **more)

    with running(Service(cpu_lm, ServeSettings(), "tiny")) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        plain = reply({"guess": "off"})
        text = plain.choices[0].message.content
        assert len(text) == 50
        for content in (text, [{"type": "text", "text": text[:20]}, {"type": "text", "text": text[20:]}]):
            found = reply({"guess": 4}, prediction={"type": "content", "content": content})
            assert found.choices[0].message.content == text
            details = found.usage.completion_tokens_details
            assert details.accepted_prediction_tokens > 15
            kept = found.usage.guesses["prediction"]
            assert details.rejected_prediction_tokens == kept["guessed"] - kept["accepted"]
        told = httpx.get(f"{address}/metrics").text
        assert 'solm_guesses_total{outcome="kept",source="prediction"}' in told
        compute = reply({"budget": "loss=0.02", "guess": 4}).usage.compute
        assert compute["loss_verified"]
        assert compute["requested"]["loss"] == 0.02
        assert 0 <= compute["realised"]["loss"] <= 0.02
        assert "solm_loss_nats_count 1.0" in httpx.get(f"{address}/metrics").text
        with pytest.raises(openai.BadRequestError, match=r"floor needs another policy"):
            reply({"budget": "loss=0.02", "floor": 0.5})
