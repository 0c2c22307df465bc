"""What editors ask for: gaps filled, tokens back as text; and what streams say while they have nothing to say."""

import copy
import json

import httpx
import pytest

from helpers.serving import CHAT, running, slow_steps, tiny_service
from helpers.thinking import follow
from solm.serving import settings

CODE = {"input_prefix": "def f(x):\n    return ", "input_suffix": "\n\nprint(f(2))"}


@pytest.fixture(scope="module")
def filling(byte_tokenizer):
    """A server of a model that fills gaps: Qwen 2.5 Coder's tokens stand for three bytes that code does not have."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    service = tiny_service(tokenizer)
    names = {"<|fim_prefix|>": 250, "<|fim_suffix|>": 251, "<|fim_middle|>": 252, "<|endoftext|>": 253}
    own = service._tokenizer.backend_tokenizer.token_to_id

    class Filled:
        def __init__(self, tokenizer):
            self._tokenizer = tokenizer
            self.backend_tokenizer = self

        def token_to_id(self, name):
            return names.get(name, own(name))

        def __getattr__(self, name):
            return getattr(self._tokenizer, name)

    from solm.serving.infill import Filling

    service.filling = Filling.of(Filled(service._tokenizer))
    with running(service) as address:
        yield service, address


def test_a_gap_is_filled_in_llama_cpps_form(filling, monkeypatch):
    service, address = filling
    follow(monkeypatch, "x + 1")
    asked = []
    submit = service.scheduler.submit
    monkeypatch.setattr(service.scheduler, "submit", lambda jobs: (asked.extend(jobs), submit(jobs)))
    ignored = {"samplers": ["top_k"], "cache_prompt": True, "n_indent": 4, "t_max_predict_ms": 500}
    answer = httpx.post(f"{address}/infill", json=CODE | {"prompt": "abs", "n_predict": 20} | ignored).json()
    assert (answer["content"], answer["stop"], answer["stop_type"]) == ("x + 1", True, "eos")
    assert answer["tokens_predicted"] == 6
    text = [service.tokens(part) for part in (CODE["input_prefix"] + "abs", CODE["input_suffix"])]
    assert asked[0].prompt.tolist() == [250, *text[0], 251, *text[1], 252]
    assert 253 in asked[0].sampler.stops
    with httpx.stream("POST", f"{address}/infill", json=CODE | {"stream": True}) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == "x + 1"
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


def test_a_completion_takes_a_suffix(filling, monkeypatch):
    _, address = filling
    follow(monkeypatch, "x + 1")
    body = {"model": "tiny", "prompt": CODE["input_prefix"], "suffix": CODE["input_suffix"], "max_tokens": 9}
    answer = httpx.post(f"{address}/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == "x + 1"
    for wrong in ({"prompt": ["a", "b"]}, {"echo": True}, {"prompt": [5, 6]}):
        refused = httpx.post(f"{address}/v1/completions", json=body | wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix"), wrong


def test_a_model_without_such_tokens_fills_no_gap(address):
    for path, body in (("/infill", CODE), ("/v1/completions", {"model": "tiny", "prompt": "a", "suffix": "b"})):
        refused = httpx.post(f"{address}{path}", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")
    assert httpx.post(f"{address}/infill", json={"input_prefx": "a"}).json()["error"]["param"] == "input_prefx"


def test_tokens_come_back_as_text(address):
    ids = httpx.post(f"{address}/tokenize", json={"prompt": "Où est-il?"}).json()["tokens"]
    answer = httpx.post(f"{address}/detokenize", json={"tokens": ids}).json()
    assert answer == {"prompt": "Où est-il?", "content": "Où est-il?"}
    for wrong in ([], [70000], ["a"], [-1]):
        refused = httpx.post(f"{address}/detokenize", json={"tokens": wrong})
        assert refused.status_code == 400, wrong
        assert refused.json()["error"]["param"].startswith("tokens")


def test_a_seed_comes_back_and_gives_the_same_again(address):
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 12}
    first = httpx.post(f"{address}/v1/chat/completions", json=body).json()
    again = httpx.post(f"{address}/v1/chat/completions", json=body | {"seed": first["seed"]}).json()
    assert again["seed"] == first["seed"] < 1 << 53
    assert again["choices"] == first["choices"]


def test_a_stream_that_waits_is_kept_alive(service, address, monkeypatch):
    monkeypatch.setattr(settings, "KEEP_ALIVE_SECONDS", 0.05)
    slow_steps(monkeypatch, 0.2)
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert any(line.startswith(":") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith((":", "data: {", "data: [")) for line in lines)


def test_models_says_what_the_model_can(address):
    (model,) = httpx.get(f"{address}/v1/models").json()["data"]
    facts = model["facts"]
    assert (facts["thinks"], facts["fills_gaps"], facts["tools"]) == (None, False, None)
    assert facts["backend"].startswith("torch")
    assert "<assistant>" in facts["chat_template"]
