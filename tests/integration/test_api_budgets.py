"""Budgets of a server whose policy brings a curve: every form is met or refused, and told in all words."""

import re
from itertools import count

import httpx
import openai
import pytest
from openai.types import Model

from helpers.serving import CHAT, LONG, ask, running, tiny_service
from solm.core.energy import EnergyMeter


@pytest.fixture(scope="module")
def service(byte_tokenizer):
    return tiny_service(byte_tokenizer, curve=True)


def test_usage_says_what_was_asked_for_and_met_in_all_words(client):
    messages = [{"role": "user", "content": LONG * 2}]
    compute = ask(
        client, messages=messages, budget="speed=1.2", max_tokens=80, temperature=0, n=2, logit_bias={"2": -100}
    ).usage.compute  # fmt: skip
    asked, met = compute["requested"], compute["realised"]
    assert set(asked) == {
        "attention", "mlp", "bits", "net", "bytes", "time", "speed", "ms", "dense_ms", "loss", "perplexity"
    }  # fmt: skip
    assert asked.keys() == met.keys()
    assert asked["speed"] == pytest.approx(1.2, abs=0.01)
    assert asked["ms"] == pytest.approx(10 / 1.2, abs=0.1)
    assert met["time"] == pytest.approx(1 / 1.2, abs=0.03)
    assert met["speed"] == pytest.approx(1 / met["time"])
    assert 0 < met["loss"] < 0.1


def test_energy_is_told_where_the_machine_tells(byte_tokenizer, monkeypatch):
    readings = count(100.0)
    for tells in (False, True):
        service = tiny_service(byte_tokenizer)
        service.lm.meter = EnergyMeter([]) if tells else None
        monkeypatch.setattr(EnergyMeter, "joules", lambda _: next(readings))
        with running(service) as address, httpx.Client(base_url=address) as http:
            asked = {"model": "tiny", "messages": CHAT, "max_tokens": 3, "ignore_eos": True, "n": 2}
            usage = http.post("/v1/chat/completions", json=asked).json()["usage"]
            given = http.post("/v1/responses", json={"model": "tiny", "input": "a", "max_output_tokens": 16}).json()
            metric = re.search(
                r'^solm_energy_joules_total{source="rapl"} (\S+)', http.get("/metrics").text, re.MULTILINE
            )
        taken = usage["energy_joules"], given["usage"]["energy_joules"]
        assert (taken == (None, None)) is not tells
        assert (metric is None) is not tells
        assert metric is None or float(metric[1]) == pytest.approx(sum(taken))


def test_models_hold_the_curve_in_one_nested_object(client):
    (model,) = client.models.list().data
    assert set(model.model_extra) - set(Model.model_fields) == {"max_model_len", "efficiency", "facts"}
    told = model.efficiency
    (point,) = told["budgets"]
    assert (point["context"], point["budget"], point["nats"]) == (500, 0.7, 0.1)
    assert point["perplexity"] == pytest.approx(1.105, abs=1e-3)
    assert told["measured"]["backend"] == "cpu int8"
    fastest = told["fastest"]["100"]
    assert fastest["speed"] == pytest.approx(1 / fastest["time"])
    assert 1.3 < fastest["speed"] < 2
    answer = ask(client, messages=CHAT, budget=f"speed={fastest['speed'] - 0.05:.2f}", max_tokens=4)
    assert answer.usage.compute["requested"]["speed"] > 1.2


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (0.05, "budget 0.05 is unreachable: at [0-9]+ tokens steps take 0.[0-9]+ to 1 of the dense step"),
        ("speed=9", "budget speed=9 is unreachable: at [0-9]+ tokens speeds are 1 to 1.[0-9]+"),
        ("ms=0.1", "budget ms=0.1 is unreachable: at [0-9]+ tokens steps take [0-9.]+ to 10 ms"),
        ("mlp=0.01", "budget mlp=0.01 is unreachable: this action space offers 0.[0-9]+ to 1"),
    ],
)
def test_a_budget_out_of_reach_names_the_range_in_the_unit_that_was_asked(client, budget, words):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        ask(client, budget=budget)
    assert refused.value.param == "efficiency.budget"


def test_a_server_without_step_times_says_what_is_missing(byte_tokenizer):
    with running(tiny_service(byte_tokenizer)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        for budget in ("speed=1.2", "loss=0.1"):
            with pytest.raises(openai.BadRequestError, match=r"needs (step timings|a policy with a measured curve)"):
                ask(client, budget=budget)
        (model,) = client.models.list().data
        assert not {"budgets", "measured", "fastest"} & set(model.efficiency)
