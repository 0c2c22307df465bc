"""What operators see: health, the access log, traces, and a disk that is full."""

import asyncio
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import openai
import pytest

from helpers.serving import ask, gauges, running, slow_steps, tiny_service, until
from solm.backends.torch.session import TorchSession
from solm.cli.output import say
from solm.core.errors import SolmError
from solm.serving.logs import line_handler

TRACE = "0af7651916cd43dd8448eb211c80319c"
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
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


@pytest.mark.parametrize("what", ["a step", "a floor"])
def test_a_server_that_cannot_warm_up_has_failed(byte_tokenizer, monkeypatch, caplog, what):
    service = tiny_service(byte_tokenizer)

    def fail(*args, **options):
        raise SolmError("out of order")

    monkeypatch.setattr(*((TorchSession, "step") if what == "a step" else (service.budgets, "floor")), fail)
    try:
        asyncio.run(service.start())
    finally:
        service.scheduler.stop()
        service.lm.detach()
    assert (service.ready, service.state) == (False, "failed")
    assert "out of order" in caplog.text


def test_no_request_waits_for_a_decoding_thread_that_has_failed(byte_tokenizer, monkeypatch):
    slow_steps(monkeypatch, 0.01)
    service, closed, begun = tiny_service(byte_tokenizer, max_rows=1), [], time.monotonic()
    monkeypatch.setattr(service.constraints, "close", lambda: closed.append(True))
    with running(service) as address, ThreadPoolExecutor(2) as threads:
        service.scheduler._aim = lambda: service.scheduler.busy < 2 or 1 / 0

        def post():
            return httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "hello", **LONGER})

        answers = [sent.result(30) for sent in [threads.submit(post) for _ in range(2)]]
        assert [answer.status_code for answer in answers] == [500, 500]  # one that decoded, one that waited
        assert {answer.json()["error"]["message"] for answer in answers} == {"this server can no longer decode"}
        after = post()
        assert (after.status_code, after.json()["error"]["code"]) == (503, "failed")
        assert gauges(service) == (0, 0, 0)
    assert closed == [True]
    assert time.monotonic() - begun < service.settings.drain_seconds


def test_the_access_log_says_what_a_request_was_given_and_spent(byte_tokenizer, lines):
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


def test_requests_that_are_cancelled_as_the_server_stops_leave_no_traceback(capsys):
    handler = line_handler()
    for error in (asyncio.CancelledError("timeout graceful shutdown exceeded"), ValueError("something else")):
        told = (type(error), error, None)
        handler.handle(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception", (), told))
    (line,) = capsys.readouterr().err.splitlines()
    assert "something else" in json.loads(line)["exception"]


@FULL
def test_a_log_line_that_cannot_be_written_is_lost_without_a_word(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        handler = line_handler()
        for _ in range(1000):
            handler.emit(logging.LogRecord("solm", logging.INFO, "", 0, "words", (), None))
        say("words")
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert capsys.readouterr().err == ""
