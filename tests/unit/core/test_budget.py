"""Budgets and ledgers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.schedules import SPACES
from solm.core.actions import PRESETS
from solm.core.budget import Budget, Ledger
from solm.core.errors import BudgetError


@given(SPACES, st.floats(0, 1))
def test_a_net_budget_is_met_on_average_by_its_axes(space, fraction):
    low, high = (sum(side) / 3 for side in zip(*space.ranges, strict=True))
    net = low + fraction * (high - low)
    budget = Budget.from_net(net, space)
    assert budget.net == pytest.approx(net)
    assert budget.check(space) is budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", "0.1 is unreachable: this action space spends 0.3375 to 1"),
        ("nan", "unreachable"),
        ("1.5", "unreachable"),
        ("attention=0.05", "attention=0.05 is unreachable: this action space offers 0.1 to 1"),
        ("mlp=2", "out of range"),
        ("bits=x", "'x' is not a number"),
        ("speed=3", "not a number or a list"),
        ("", "not a number or a list"),
    ],
)
def test_bad_budgets_name_the_value_and_the_range(text, message):
    with pytest.raises(BudgetError, match=message.replace("(", r"\(")):
        Budget.parse(text, PRESETS["joint-8"])


def test_parse_per_axis_leaves_the_others_dense():
    budget = Budget.parse("mlp=0.7,bits=8", PRESETS["joint-8"])
    assert budget.shares == (1.0, 0.7, 0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_ledger_averages_only_what_was_controllable(history):
    ledger = Ledger.empty(1)
    for share, on in history:
        ledger = ledger.add(torch.full((1, 3), share, dtype=torch.float64), torch.tensor([on]))
    counted = [share for share, on in history if on]
    expected = sum(counted) / len(counted) if counted else 1.0
    assert ledger.average[0].tolist() == pytest.approx([expected] * 3)
    target = torch.full((1, 3), 0.5, dtype=torch.float64)
    assert ledger.deviation(target)[0].tolist() == pytest.approx([expected - 0.5 if counted else 0.0] * 3)
