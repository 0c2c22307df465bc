"""A burst's damage: nothing before it ends is dense, what cannot last does not."""

import pytest

from helpers.texts import FISH as TEXT
from solm.core.actions import Action
from solm.core.errors import SolmError
from solm.data.windows import stream_of
from solm.research.kv_drift import plot, pollution


def test_a_burst_of_sparsity_costs_while_it_lasts_and_less_after_it(tiny_lm):
    stream = stream_of([TEXT], tiny_lm.tokenizer, "fish")
    sizes = {"burst": 8, "stretch": 8, "sequences": 6, "context": 90, "length": 40}
    result = pollution(tiny_lm, [stream], Action(0.1, 0.1, 3), **sizes)
    assert set(result.during) == {"all", "attention", "mlp", "bits"}
    assert abs(result.during["all"].value) > 0
    assert [len(points) for points in result.after.values()] == [4] * 4
    assert any(abs(point.value) > 1e-6 for point in result.after["mlp"])
    assert plot(result).startswith(b"\x89PNG")
    untouched = pollution(tiny_lm, [stream], Action(1.0, 1.0, 16), **sizes)
    assert untouched.during["all"].value == untouched.after["all"][0].value == 0
    with pytest.raises(SolmError, match="burst 40 must"):
        pollution(tiny_lm, [stream], Action(0.1, 0.1, 3), **{**sizes, "burst": 40})
