"""Budgets and ledgers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.schedules import SPACES
from solm.core.actions import PRESETS
from solm.core.budget import Budget, BudgetRequest, Ledger
from solm.core.errors import BudgetError


@given(SPACES, st.floats(0, 1))
def test_a_net_budget_is_met_on_average_by_its_axes(space, fraction):
    low, high = (sum(side) / 3 for side in zip(*space.ranges, strict=True))
    net = low + fraction * (high - low)
    budget = Budget.from_net(net, space)
    assert budget.net == pytest.approx(net)
    assert all(
        least - 1e-9 <= share <= most + 1e-9 for share, (least, most) in zip(budget.shares, space.ranges, strict=True)
    )


@pytest.mark.parametrize(
    ("asked", "kind", "value"),
    [
        (None, "shares", Budget()),
        (0.7, "compute", 0.7),
        (1, "compute", 1.0),
        ("0.7", "compute", 0.7),
        ("keep=0.6", "keep", 0.6),
        ("ms=4.5", "ms", 4.5),
        ("mlp = 0.7, bits=8", "shares", Budget(mlp=0.7, bits=8)),
        (Budget(attention=0.5), "shares", Budget(attention=0.5)),
        (BudgetRequest("keep", 0.5), "keep", 0.5),
    ],
)
def test_a_budget_is_read_in_any_of_its_forms(asked, kind, value):
    assert BudgetRequest.parse(asked) == BudgetRequest(kind, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nan", "budget nan is out of range: a share must be above 0 and at most 1"),
        (1.5, "budget 1.5 is out of range"),
        (0, "budget 0 is out of range"),
        ("keep=2", "budget keep=2 is out of range"),
        ("ms=1e400", "budget ms=1e400 is out of range: milliseconds must be above 0 and finite"),
        ("mlp=2", "budget mlp=2 is out of range: a share must be above 0 and at most 1"),
        ("bits=99", r"budget bits=99 is out of range: bits must be in \[2, 16\]"),
        ("ms=0", "budget ms=0 is out of range: milliseconds must be above 0"),
        ("ms=soon", "'soon' is not a number"),
        ("speed=0.9", "budget speed=0.9 is out of range: a speed must be at least 1"),
        ("loss=0", "budget loss=0 is out of range: a loss must be above 0 nats"),
        ("fast=3", "is not a number, speed=1.5, ms=4.5, loss=0.05, keep=0.6 or a list"),
        ("", "is not a number, speed=1.5, ms=4.5, loss=0.05, keep=0.6 or a list"),
        ("mlp=0.5,mlp=0.6", "gives mlp twice"),
        ("keep=0.5,mlp=0.6", "says several things; give keep, speed, ms and loss alone"),
    ],
)
def test_bad_budgets_name_the_value_and_the_range(text, message):
    with pytest.raises(BudgetError, match=message):
        BudgetRequest.parse(text)


def test_a_net_keep_that_a_space_cannot_spend_names_its_range():
    with pytest.raises(BudgetError, match=r"budget 0\.1 is unreachable: net keeps of this space are 0.3375 to 1"):
        Budget.from_net(0.1, PRESETS["joint-8"])


@given(st.lists(st.tuples(st.floats(0, 1), st.tuples(*[st.booleans()] * 3)), max_size=30))
def test_ledger_averages_only_what_was_controllable(history):
    ledger = Ledger(np.zeros((1, 3)), np.zeros((1, 3), np.int64))
    for share, on in history:
        ledger = ledger.add(np.full((1, 3), share), np.array([on]))
    for axis in range(3):
        counted = [share for share, on in history if on[axis]]
        expected = sum(counted) / len(counted) if counted else 1.0
        assert float(ledger.average[0, axis]) == pytest.approx(expected)


def test_a_budget_may_be_a_mapping_of_axes_as_in_a_request():
    assert BudgetRequest.parse({"attention": 0.4, "mlp": 0.7}) == BudgetRequest.parse("attention=0.4,mlp=0.7")
