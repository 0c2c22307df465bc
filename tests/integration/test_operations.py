"""What operators see: health, the access log, traces, and a disk that is full."""

import asyncio
import json
import logging

import httpx
import openai
import pytest

from helpers.serving import LONG, ask, running, tiny_service, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
LONGER = {"max_tokens": 350, "logit_bias": {"2": -100}}


@pytest.fixture
def lines(caplog):
    """The access lines of completions so far."""
    caplog.set_level(logging.INFO, "solm.serving.access")

    def completions():
        said = [each.message for each in caplog.records if each.name == "solm.serving.access"]
        return [json.loads(line) for line in said if "completions" in line]

    return completions


def test_health_is_told_by_state(byte_tokenizer):
    service = tiny_service(byte_tokenizer)
    with running(service, keys=["secret"]) as address:
        paths = ("/health", "/health/live", "/health/ready")

        def told():
            answers = [httpx.get(f"{address}{path}") for path in paths]
            return [answer.status_code for answer in answers], {answer.json()["status"] for answer in answers}

        assert told() == ([200, 200, 200], {"ready"})
        service.ready = False
        assert told() == ([503, 200, 503], {"starting"})
        service.ready = True
        service.scheduler.governor.idle = lambda: 1 / 0  # the loop itself fails, not a row
        service.scheduler.submit([])
        until(service.scheduler.running.done)
        assert told() == ([503, 503, 503], {"failed"})
        service.scheduler.stop()
        assert told() == ([503, 503, 503], {"failed"})


def test_metrics_are_open_only_where_that_is_asked_for(byte_tokenizer):
    for opened, status in ((False, 401), (True, 200)):
        with running(tiny_service(byte_tokenizer, open_metrics=opened), keys=["secret"]) as address:
            found = httpx.get(f"{address}/metrics")
            assert (found.status_code, httpx.get(f"{address}/v1/models").status_code) == (status, 401)


def test_the_warm_up_is_not_counted(byte_tokenizer):
    with running(tiny_service(byte_tokenizer)) as address:
        before = httpx.get(f"{address}/metrics").text
        httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "hello", "max_tokens": 2})
        after = httpx.get(f"{address}/metrics").text
    assert 'solm_rows_ended_total{reason="server_error"} 0.0' in before
    assert before.count("solm_rows_ended_total{") == 1
    for name in ("time_to_first_token_seconds_count", "time_per_token_seconds_count", "net_keep_count"):
        assert f"solm_{name} 0.0" in before
        assert f"solm_{name} 1.0" in after
    assert 'solm_tokens_total{kind="cached"}' not in before
    assert 'solm_tokens_total{kind="completion"} 0.0' in before


def test_the_access_log_says_what_a_request_was_given_and_spent(byte_tokenizer, lines, caplog):
    service = tiny_service(byte_tokenizer, curve=True)
    with running(service, keys=["alice:one"]) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="one", max_retries=0)
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        usage = ask(client, n=2, efficiency={"priority": "low"}, extra_headers=headers).usage
        list(ask(client, stream=True, budget=None))
        until(lambda: len(lines()) == 2)
    whole, streamed = lines()
    assert (whole["key"], whole["trace"], whole["priority"], whole["policy"]) == ("alice", TRACE, "low", "policy")
    assert (whole["prompt_tokens"], whole["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert whole["cached_tokens"] == usage.prompt_tokens_details.cached_tokens
    assert whole["realised"]["net"] == pytest.approx(usage.compute["realised"]["net"], abs=1e-3)
    assert whole["requested"]["net"] == 0.6
    assert whole["saved_ms"] > 0
    assert len(whole["finish"]) == 2
    assert set(whole["finish"]) <= {"stop", "length"}
    assert streamed["policy"] == "dense"
    assert streamed["saved_ms"] == 0
    assert "trace" not in streamed
    assert LONG[:20] not in caplog.text, "nothing that was said"


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_was_hung_up_on_is_logged_as_cancelled(byte_tokenizer, lines, stream):
    service = tiny_service(byte_tokenizer)

    async def hang_up(address):
        body = {"model": "tiny", "prompt": "hello", "stream": stream, **LONGER}
        async with httpx.AsyncClient() as http:
            posting = asyncio.create_task(http.post(f"{address}/v1/completions", json=body))
            while not service.scheduler.busy:
                await asyncio.sleep(0.01)
            posting.cancel()

    with running(service) as address:
        asyncio.run(hang_up(address))
        until(lambda: lines())
    (line,) = lines()
    assert line["finish"] == ["cancelled"]
    assert ("completion_tokens" in line) == stream
    assert "realised" not in line
