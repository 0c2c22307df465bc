"""Many requests at once, clients that hang up, and rows and passes that fail."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from helpers.serving import ask, gauges, running, tiny_service, until
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


def test_an_error_in_one_row_fails_that_request_alone(service, client, monkeypatch):
    from solm.serving.scheduler import Row

    take = Row.take

    def broken(self, logits, guess=None):
        if self.seed == 666 and len(self.ids) == 3:
            raise RuntimeError("injected")
        take(self, logits, guess)

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
