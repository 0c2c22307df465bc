"""NumPy arrays and torch tensors side by side: bookkeeping is done in NumPy, so that nobody who has only arrays waits
seconds for the import of torch."""

import sys
from typing import TYPE_CHECKING, Any, TypeVar, Union

import numpy as np

if TYPE_CHECKING:
    import torch

Array = Union[np.ndarray, "torch.Tensor"]
"""A NumPy array or a torch tensor."""
AnyArray = TypeVar("AnyArray", np.ndarray, "torch.Tensor")
"""The same where a function answers in the kind that it is given."""


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_numpy(values: Any) -> np.ndarray:
    """The values as an array on the host, without a copy where there need be none; bfloat16 becomes float32."""
    if type(values) is np.ndarray or not is_tensor(values):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy())


def as_tensor(values: Any) -> "torch.Tensor":
    """The values as a tensor, which shares an array's memory."""
    import torch

    if is_tensor(values):
        return values  # type: ignore[no-any-return]
    values = np.asarray(values)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def in_kind(values: np.ndarray, kind: Any) -> Any:
    """`values` as an array, or where `kind` is a tensor, as a tensor on its device."""
    if type(kind) is np.ndarray or not is_tensor(kind):
        return values
    return as_tensor(values).to(kind.device)
