"""A server whose steps are slower than its objective."""

import threading

import openai
import pytest
import torch

from helpers.serving import (
    ask,
    gauges,
    running,
    slow_steps,
    steps_by_budget,
    tiny_service,
    until,
)
from solm.serving.keys import ApiKey


def clients(address, *keys):
    return [openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) for key in keys]


def told(client, budget="keep=0.9", **efficiency):
    """A long reply under the policy static: the mean net keep of its last 60 steps, and what is said of all."""
    answer = ask(
        client, max_tokens=140, logit_bias={"2": -100}, budget=budget,
        efficiency={"policy": "static", "trace": True, **efficiency},
    )  # fmt: skip
    shares = [list(token["realised"].values()) for token in answer.choices[0].efficiency["tokens"]]
    return float(torch.tensor(shares[-60:]).mean()), answer.usage.compute


def test_a_server_under_pressure_lowers_budgets_to_the_floor_that_was_asked_for(byte_tokenizer, monkeypatch):
    """By request before API key before priority before server; what is said of a reply holds over all of its steps."""
    service = tiny_service(
        byte_tokenizer, slo_tpot_ms=0.01, slo_floor="keep=0.5",
        priority_floors={"low": "keep=0.4", "high": "keep=0.7"},
    )  # fmt: skip
    steps_by_budget(monkeypatch, 0.03)
    with running(service, keys=["alice:one", ApiKey("two", "bob", "keep=0.6")]) as address:
        alice, bob = clients(address, "one", "two")
        net, compute = told(alice)
        assert net == pytest.approx(0.5, abs=0.04)
        assert compute["requested"]["net"] == pytest.approx(0.9)
        assert compute["realised"]["net"] == pytest.approx(compute["allowed"]["net"], abs=0.03)
        assert 0.5 < compute["allowed"]["net"] < 0.85
        assert told(alice, priority="low")[0] == pytest.approx(0.4, abs=0.04)
        assert told(alice, priority="high")[0] == pytest.approx(0.7, abs=0.04)
        assert told(bob, priority="high")[0] == pytest.approx(0.6, abs=0.04)
        assert told(bob, floor="keep=0.8")[0] == pytest.approx(0.8, abs=0.04)
        net, compute = told(alice, budget=None, policy="dense")
        assert (net, compute["realised"]["net"], compute["allowed"]["net"]) == (1, 1, 1)
        assert told(alice, budget=None, policy=None)[0] == pytest.approx(0.5, abs=0.06)
        (model,) = alice.models.list().data
        assert model.efficiency["priorities"] == {"low": "keep=0.4", "normal": "keep=0.5", "high": "keep=0.7"}
        sample = service.metrics.registry.get_sample_value
        assert sample("solm_governor_saving") > 0.05
        assert sample("solm_class_net_keep_count", {"priority": "low"}) == 1
        assert sample("solm_class_net_keep_count", {"priority": "high"}) == 2


def test_a_request_with_a_deadline_spends_less(byte_tokenizer):
    with running(tiny_service(byte_tokenizer)) as address:
        (client,) = clients(address, "none")
        ask(client, max_tokens=50)
        hurried = ask(client, budget=None, max_tokens=100, logit_bias={"2": -100}, efficiency={"deadline_ms": 1})
        compute = hurried.usage.compute
        assert compute["realised"]["net"] < 0.6
        assert compute["requested"]["net"] == 1
        assert compute["allowed"]["net"] == pytest.approx(compute["realised"]["net"], abs=0.08)


def test_a_higher_priority_goes_first(byte_tokenizer, monkeypatch):
    service, order = tiny_service(byte_tokenizer, max_rows=1), []
    with running(service) as address:
        (client,) = clients(address, "none")
        slow_steps(monkeypatch, 0.03)

        def one(priority, tokens):
            ask(client, budget=None, max_tokens=tokens, efficiency={"priority": priority}, logit_bias={"2": -100})
            order.append(priority)

        def count(state):
            name = "solm_class_rows"
            of = service.metrics.registry.get_sample_value
            return [of(name, {"state": state, "priority": priority}) for priority in ("low", "normal", "high")]

        threads = [threading.Thread(target=one, args=("normal", 40))]
        threads[0].start()
        until(lambda: count("running") == [0, 1, 0])
        for number, priority in enumerate(["low", "normal", "high", "low"]):
            threads.append(threading.Thread(target=one, args=(priority, 2)))
            threads[-1].start()
            until(lambda number=number: service.scheduler.busy == number + 2)
        until(lambda: count("waiting") == [2, 1, 1])
        for thread in threads:
            thread.join()
    assert order == ["normal", "high", "normal", "low", "low"]
    assert gauges(service) == (0, 0, 0)
