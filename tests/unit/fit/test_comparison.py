"""The curve of a policy whose step times are measured anew."""

import pytest

from helpers.policies import SPACE, network
from helpers.timings import CPU, SHAPES, made_curve, made_timings
from solm.fit.comparison import retimed
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.identity import BaseIdentity


def test_new_step_times_change_budgets_and_milliseconds_and_no_loss():
    made = network(layer=1)
    base = BaseIdentity(name="m", family="llama", hidden=64, layers=4, vocabulary=259)
    config = PolicyConfig(base=base, space=SPACE, sparsity=CPU, network=made.config)
    before = TrainedPolicy(config, made, made_curve(CPU, SHAPES))
    faster = made_timings(CPU, SHAPES, (100, 4000), mlp=0.8)
    (point,) = retimed(before, faster, SHAPES).curve.points
    (old,) = before.curve.points
    assert (point.nats, point.mlp, point.attention) == (old.nats, old.mlp, old.attention)
    assert point.step_ms == pytest.approx(10 * (1 - 0.6 * 0.8), rel=0.03)
    assert point.budget == pytest.approx(point.step_ms / 10, abs=0.001)
    assert point.speed == pytest.approx(10 / point.step_ms)
