"""What is checked of the weights of every kind of policy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from solm.core.arrays import as_numpy, is_tensor
from solm.core.errors import PolicyMismatchError


def check_weights(found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `PolicyMismatchError` unless the arrays or tensors `found` have the names and shapes of `shapes`, and
    finite values."""
    for name in sorted(shapes.keys() | found.keys()):
        if name not in found or name not in shapes:
            what = "lack" if name in shapes else "hold the unknown tensor"
            raise PolicyMismatchError(f"the weights of the policy {what} {name}")
        values = found[name]
        got, wanted = list(values.shape), list(shapes[name])
        if got != wanted:
            raise PolicyMismatchError(f"{name} of the policy has shape {got}; it must be {wanted}")
        # In float32: NumPy has no float8.
        if not np.isfinite(as_numpy(values.float() if is_tensor(values) else values)).all():
            raise PolicyMismatchError(f"{name} of the policy holds values that are not finite")
