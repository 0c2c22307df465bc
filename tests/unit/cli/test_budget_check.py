"""What the check of a budget refuses before a model is loaded."""

import pytest

from solm.cli.budget_check import checked_budget
from solm.core.budget import Budgets
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.policies.artifact import TrainedPolicy
from solm.runtime.facts import ModelFacts

SHAPES = ModelShapes(
    layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, gated=True
)


def test_a_share_of_bytes_that_some_bits_would_allow_is_not_refused_before_they_are_known():
    shipped, facts = TrainedPolicy.from_pretrained("builtin:smollm2-135m-cpu"), ModelFacts("llama", 8192, SHAPES)
    trained, config, share, context = TrainedPolicy(shipped.config, shipped.network), shipped.config, 0.4, 8192
    packed = SHAPES.model_copy(update={"weight_bits": 5, "head_bits": 8.5})  # beside a KV cache of 16 bits
    Budgets(config.space, config.sparsity, packed, trained).budget(share, context)
    with pytest.raises(SolmError, match=r"budget 0\.4 is unreachable"):
        Budgets(config.space, config.sparsity, SHAPES, trained).budget(share, context)
    assert checked_budget(share, facts, trained, None, context=context).value == share
    with pytest.raises(SolmError, match=r"budget 0\.2 is unreachable"):
        checked_budget(0.2, facts, trained, None, context=context)


@pytest.mark.parametrize("floor", ["0.01", "keep=0.01", "attention=0.01", "mlp=0.01"])
def test_a_floor_below_what_can_be_met_is_accepted_in_every_form(floor):
    facts = ModelFacts("llama", 8192, SHAPES)
    checked_budget(floor, facts, None, None, clamp=True)
    with pytest.raises(SolmError, match="is unreachable"):
        checked_budget(floor, facts, None, None)
