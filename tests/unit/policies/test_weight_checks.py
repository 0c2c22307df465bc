"""What is refused of a policy's weights, as arrays and as tensors."""

import numpy as np
import pytest
import torch

from solm.core.errors import PolicyMismatchError
from solm.policies.weight_checks import check_weights

SHAPES = {"a": (2,), "b": (1, 3)}


def weights(kind, **changes):
    found = {"a": np.ones(2, np.float32), "b": np.ones((1, 3), np.float32)} | changes
    return {name: kind(values) for name, values in found.items()}


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": np.ones(1)}, "the weights of the policy hold the unknown tensor c"),
        ({"a": np.ones(3)}, r"a of the policy has shape \[3\]; it must be \[2\]"),
        ({"b": np.array([[1, np.nan, 1]])}, "b of the policy holds values that are not finite"),
    ],
)
def test_weights_of_another_network_are_refused(kind, changes, message):
    check_weights(weights(kind), SHAPES)
    with pytest.raises(PolicyMismatchError, match=message):
        check_weights(weights(kind, **changes), SHAPES)


def test_missing_weights_are_refused():
    with pytest.raises(PolicyMismatchError, match="the weights of the policy lack b"):
        check_weights({"a": np.ones(2)}, SHAPES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_that_numpy_lacks_are_checked_too(dtype):
    small = {name: torch.ones(shape).to(dtype) for name, shape in SHAPES.items()}
    check_weights(small, SHAPES)
    small["a"] = torch.full((2,), torch.nan).to(dtype)
    with pytest.raises(PolicyMismatchError, match="a of the policy holds values that are not finite"):
        check_weights(small, SHAPES)
