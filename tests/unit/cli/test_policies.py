"""Which policy ships for a model."""

import pytest

from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.policies.artifact import TrainedPolicy
from solm.runtime.load import ModelFacts, shipped_policy


def facts(base, **changes):
    """What a model file says of a model of this size before it is loaded."""
    sizes = dict.fromkeys(("intermediate", "heads", "kv_heads", "head_dim"), 1)
    shapes = ModelShapes(layers=base.layers, hidden=base.hidden, vocabulary=base.vocabulary, gated=True, **sizes)
    return ModelFacts(base.family, None, shapes.model_copy(update=changes))


def test_auto_is_the_policy_that_ships_for_the_model():
    shipped = TrainedPolicy.from_pretrained("builtin:smollm2-135m-cpu")
    base, heads = shipped.config.base, shipped.config.sparsity.allocation.heads
    assert shipped_policy(facts(base, kv_heads=heads)) == "builtin:smollm2-135m-cpu"
    assert shipped_policy(facts(base)) == "builtin:smollm2-135m-cpu"
    with pytest.raises(SolmError, match="no policy ships for this llama model"):
        shipped_policy(facts(base, layers=31))
