"""Partial results are continued only where all that they depend on is the same."""

import pytest
import torch

from helpers.policies import SPARSITY, network, under_values
from helpers.timings import made_timings
from solm.core.actions import ActionSpace
from solm.evaluation.arms import Arm
from solm.evaluation.perplexity import EvaluationSettings
from solm.evaluation.resume import arm_fingerprints, network_fingerprint, resume_key
from solm.policies.artifact import TrainedPolicy
from solm.policies.schedules import Paced, Static

SETTINGS = EvaluationSettings(budgets=(0.8,))
SPACE = ActionSpace.preset("joint-8")


@pytest.mark.parametrize("change", ["nothing", "model", "policy", "timings", "settings", "space", "text"])
def test_every_part_counts(value_lm, change):
    before = resume_key(value_lm, SETTINGS, SPACE, "1")
    lm, settings, space, text = value_lm, SETTINGS, SPACE, "1"
    if change == "model":
        lm.model.get_input_embeddings().weight.data[:] += 1
    if change == "policy":
        lm = lm.with_policy(TrainedPolicy(lm.trained.config, network(seed=1)))
    if change == "timings":
        lm.timings = made_timings(lm.sparsity, lm.shapes)
    if change == "settings":
        settings = SETTINGS.model_copy(update={"seed": 1})
    if change == "space":
        space = ActionSpace.preset("joint-27")
    if change == "text":
        text = "2"
    assert (resume_key(lm, settings, space, text) == before) == (change == "nothing")


def test_networks_are_told_apart_by_their_weights(tiny_lm):
    policy = under_values(tiny_lm, SPARSITY).trained.policy()
    assert network_fingerprint(policy) == network_fingerprint(under_values(tiny_lm, SPARSITY).trained)
    with torch.no_grad():
        policy.network.head.bias[0] += 1
    assert network_fingerprint(policy) != network_fingerprint(under_values(tiny_lm, SPARSITY).trained)
    assert network_fingerprint(tiny_lm.policy("static")) == ""


def test_arms_are_told_apart_by_all_that_they_do(value_lm):
    arms = [
        Arm(Static(SPACE)),
        Arm(Paced(SPACE)),
        Arm(Static(ActionSpace.preset("joint-27"))),
        Arm(Static(SPACE), SPARSITY),
        Arm(value_lm.trained.policy()),
        Arm(TrainedPolicy(value_lm.trained.config, network(seed=1)).policy()),
    ]
    lines = [line for arm in arms for line in arm_fingerprints({"rival": arm})]
    assert len(set(lines)) == len(arms)
    assert arm_fingerprints({"rival": Arm(Static(SPACE))}) == lines[:1]
    assert arm_fingerprints({"other": arms[0]}) != lines[:1]
