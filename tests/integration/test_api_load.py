"""Many requests at once, clients that hang up, and rows and passes that fail."""

import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from helpers.serving import CHAT, ask, gauges, running, tiny_service, until
from solm.backends.torch.session import TorchSession


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_many_at_once_all_get_their_own_answer(service, client, count):
    rng = random.Random(0)
    orders = [
        {
            "messages": [{"role": "user", "content": f"secret {number} " * rng.randint(1, 20)}], "temperature": 0,
            "max_tokens": rng.randint(1, 24), "budget": rng.choice([None, "keep=0.5", "keep=0.7", 0.95]),
            "stream": rng.random() < 0.5,
        }
        for number in range(count)
    ]  # fmt: skip

    def one(order):
        answer = ask(client, **order)
        if order["stream"]:
            return "".join(piece.choices[0].delta.content or "" for piece in answer)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(count) as pool:
        together = list(pool.map(one, orders))
    some = rng.sample(range(count), 12)
    assert [together[number] for number in some] == [one(orders[number]) for number in some]
    until(lambda: gauges(service) == (0, 0, 0))


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_many_hang_up_and_nothing_is_left(service, address, client, count):
    rng, cancelled = random.Random(1), ("solm_rows_ended_total", {"reason": "cancelled"})
    before = service.metrics.registry.get_sample_value(*cancelled) or 0

    def hang_up(number):
        body = {"model": "tiny", "messages": CHAT, "max_tokens": 350, "stream": number % 2 == 0}
        body["logit_bias"] = {"2": -100}
        body["efficiency"] = {"budget": "keep=0.6"}
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
        list(pool.map(hang_up, range(count)))
    until(lambda: gauges(service) == (0, 0, 0), 120)
    assert service.scheduler.busy == 0
    assert (service.metrics.registry.get_sample_value(*cancelled) or 0) - before > count / 2
    assert ask(client).choices[0].message.content


def test_a_client_that_reads_a_byte_at_a_time_holds_nobody_up(service, address, client):
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 120, "stream": True, "logit_bias": {"2": -100}}
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    )
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        slow.sendall(head.encode() + text)
        assert slow.recv(1) == b"H"
        assert ask(client).usage.completion_tokens == 40
        until(lambda: gauges(service) == (0, 0, 0))
        assert slow.recv(1) == b"T"
    until(lambda: gauges(service) == (0, 0, 0))


def test_an_error_in_one_row_fails_that_request_alone(service, client, monkeypatch):
    from solm.serving.scheduler import Row

    take = Row.take

    def broken(self, logits):
        if self.job.seed == 666 and len(self.ids) == 3:
            raise RuntimeError("injected")
        take(self, logits)

    monkeypatch.setattr(Row, "take", broken)
    with ThreadPoolExecutor(4) as pool:
        fine = [pool.submit(ask, client, seed=seed, logit_bias={"2": -100}) for seed in (1, 2)]
        bad = pool.submit(ask, client, seed=666, logit_bias={"2": -100})
        streamed = pool.submit(lambda: list(ask(client, seed=666, stream=True, logit_bias={"2": -100})))
        with pytest.raises(openai.InternalServerError, match="others go on"):
            bad.result()
        with pytest.raises(openai.APIError, match="others go on"):
            streamed.result()
        assert all(answer.result().usage.completion_tokens == 40 for answer in fine)
    until(lambda: gauges(service) == (0, 0, 0))


def test_a_pass_that_fails_ends_its_rows_and_the_server_goes_on(service, client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TorchSession, "step", lambda *_, **__: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            ask(client)
    assert ask(client).usage.completion_tokens == 40


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
