"""Arms: what they read is counted, budgets are kept, and each is what its name says."""

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model, tokens
from helpers.sessions import scored_under
from helpers.texts import FISH as TEXT
from solm.backends.torch.families import decoder_layers, mlp_sites
from solm.core.actions import ActionSpace
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.evaluation.arms import BASELINES, BaselineRequest, constant, teal, upper_bits
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.texts import stream_of
from solm.policies.schedules import Static

PAGES = SparsityConfig(page_size=4, sinks=4, window=8)
CONTEXT, STEPS = 90, 40


@pytest.fixture
def exact_lm(byte_tokenizer):
    with solm.attach(tiny_model("llama"), tokenizer=byte_tokenizer, sparsity=PAGES) as lm:
        yield lm


def prefilled(lm, rows: int):
    ids = tokens(rows, CONTEXT + STEPS + 1)
    session = lm.session()
    session.prefill(ids[:, :CONTEXT])
    return session, ids[:, CONTEXT:]


def keep(rows: int, *numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).expand(rows, STEPS, 3)


def test_constant_needs_no_level_of_the_space(exact_lm):
    session, ids = prefilled(exact_lm, 2)
    goal = torch.tensor([[1.0, 0.63, 1.0]] * 2, dtype=torch.float64)
    arm = constant(BaselineRequest(exact_lm, ActionSpace(mlp=(0.4, 1.0))))
    found = scored_under(session.fork(1), arm.policy, ids, goal).realised[..., 1]
    assert found.std(1).max() < 0.01
    coarse = scored_under(session.fork(1), Static(ActionSpace(mlp=(0.4, 1.0))), ids, goal).realised[..., 1]
    assert coarse.std(1).min() > 0.2


def test_thresholds_pass_the_calibrated_share_and_what_passed_is_realised(exact_lm):
    windows = tokens(4, CONTEXT)
    thresholds = exact_lm.backend.channel_thresholds(windows)
    seen = {}
    hooks = []
    for index, layer in enumerate(decoder_layers(exact_lm.model)):
        for site, module in enumerate(mlp_sites(layer)):
            hooks.append(module.register_forward_pre_hook(lambda m, x, key=(index, site): seen.update({key: x[0]})))
    exact_lm.session().prefill(windows)
    for hook in hooks:
        hook.remove()
    limits = thresholds.at(np.full((2, 1), 0.6))
    for (index, site), x in seen.items():
        assert float((x.abs().float() >= limits[site, index]).double().mean()) == pytest.approx(0.6, abs=0.01)
    session, ids = prefilled(exact_lm, 3)

    def rows(**changes):
        return session.fork(1, 0, session.sparsity.model_copy(update={"thresholds": thresholds, **changes}))

    some = rows()
    found = some.score(ids, keep(3, 1, 0.6, 16))
    torch.testing.assert_close(some.ledger.average, found.realised.mean(1))
    share = found.realised[..., 1]
    assert float(share.mean()) == pytest.approx(0.6, abs=0.05)
    assert share.std() > 0.005  # tokens differ, exact top-k would not let them
    squared = rows(hidden_power=2).score(ids, keep(3, 1, 0.6, 16)).realised[..., 1]
    assert float(squared.mean()) == pytest.approx((0.6 + 0.6**2) / 2, abs=0.05)
    inputs = rows(mlp_site="input").score(ids, keep(3, 1, 0.6, 16)).realised[..., 1]
    assert float(inputs.mean()) == pytest.approx(0.6, abs=0.05)
    everything = rows().score(ids, keep(3, 1, 1, 16))
    dense = session.fork(1).score(ids, keep(3, 1, 1, 16))
    torch.testing.assert_close(everything.log_probabilities, dense.log_probabilities, rtol=0, atol=0)
    assert (everything.realised == 1).all()


def test_every_baseline_is_an_arm_on_the_same_tokens(value_lm, byte_tokenizer):
    stream, tuning = stream_of([TEXT], byte_tokenizer, "fish"), stream_of([TEXT[::-1]], byte_tokenizer, "hsif")
    settings = EvaluationSettings(budgets=(0.7,), texts=4, context=60, length=24, batch=2)
    value_lm.sparsity = PAGES
    request = BaselineRequest(value_lm, value_lm.space, tuning, 60)
    arms = {name: make(request) for name, make in BASELINES.items() if name != "upper-bits"}
    result = evaluate(value_lm, [stream], settings, rivals=arms)
    found = {point.arm: point for point in result.points}
    assert set(arms) <= set(found)
    for name in arms:
        assert found[name].realised == pytest.approx(found["policy"].realised, abs=0.05), name
        assert found[name].difference is not None
        assert found[name].tokens == found["policy"].tokens
    for name in arms:
        for axis, share in found["policy"].axes.items():
            assert found[name].axes[axis] == pytest.approx(share, abs=0.07), (name, axis)


def test_a_baseline_that_cannot_run_gives_one_line(exact_lm):
    request = BaselineRequest(exact_lm, ActionSpace.preset("joint-8"))
    with pytest.raises(SolmError, match="give --tuning"):
        teal(request)
    with pytest.raises(SolmError, match="needs a policy that chooses weight bits"):
        upper_bits(request)
