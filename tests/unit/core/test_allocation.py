"""Allocations: which are refused."""

import pytest
from pydantic import ValidationError

from helpers.policies import EVEN, profile_of
from solm.core.errors import SolmError
from solm.core.sparsity import KNOTS, Allocation
from solm.paper.config import SPARSITY as PAPER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp": ((0.5,) * KNOTS,) * 2}, "rise from at least 0 to 1"),
        ({"attention": (EVEN,)}, "points for every layer"),
        ({"attention": (EVEN[:-1], EVEN[:-1])}, "points for every layer"),
        ({"mlp": ((*EVEN[:3], 0.05, *EVEN[4:]), EVEN)}, "rise from at least 0 to 1"),
        ({"hidden": None, "qkv": (EVEN,) * 2, "out": (EVEN,) * 2}, "qkv needs curves of hidden channels"),
        ({"mlp": ((*EVEN[:3], float("nan"), *EVEN[4:]), EVEN)}, "rise from at least 0 to 1"),
    ],
)
def test_malformed_allocations_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Allocation(**{"attention": (EVEN, EVEN), "mlp": (EVEN, EVEN), "hidden": (EVEN, EVEN), **change})


def test_a_sparsity_without_a_window_has_no_allocation():
    with pytest.raises(SolmError, match="an allocation needs a window"):
        PAPER.under(profile_of(0, 0))
