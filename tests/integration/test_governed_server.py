"""A server whose steps are slower than its objective."""

import openai
import pytest
import torch

from helpers.serving import ask, running, tiny_service


def test_a_server_under_pressure_lowers_budgets_to_the_floor_that_was_asked_for(byte_tokenizer):
    service = tiny_service(byte_tokenizer, slo_tpot_ms=0.01, slo_floor="keep=0.5", slo_rows=False)
    with running(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def realised(**efficiency):
            budget = efficiency.pop("budget", "keep=0.9")
            answer = ask(
                client, max_tokens=200, logit_bias={"2": -100}, budget=budget,
                efficiency={"policy": "static", "trace": True, **efficiency},
            )  # fmt: skip
            shares = [list(token["realised"].values()) for token in answer.choices[0].efficiency["tokens"]]
            return float(torch.tensor(shares[-100:]).mean())

        assert realised() == pytest.approx(0.5, abs=0.04)
        assert realised(floor="keep=0.8") == pytest.approx(0.8, abs=0.04)
        assert realised(budget=None, policy="dense") == 1
        assert realised(budget=None, policy=None, trace=True) == pytest.approx(0.5, abs=0.06)
        assert service.scheduler.governor.dial == 0


def test_a_request_with_a_deadline_spends_less(byte_tokenizer):
    with running(tiny_service(byte_tokenizer)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        ask(client, max_tokens=50)
        hurried = ask(client, budget=None, max_tokens=100, logit_bias={"2": -100}, efficiency={"deadline_ms": 1})
        assert hurried.usage.compute["realised"]["net"] < 0.6
        assert hurried.usage.compute["requested"]["net"] == 1
