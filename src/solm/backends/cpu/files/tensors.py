"""A tensor as a file has it: its blocks, untouched, and what they mean."""

from dataclasses import dataclass, replace

import numpy as np
from gguf.constants import GGMLQuantizationType as TensorType
from numpy.typing import NDArray


@dataclass(frozen=True)
class Numbers:
    """What a quantised type consists of. bits: of a number. group: inputs that share a step. centre: the number that
    means zero; -1 where groups have lowest values of their own."""

    bits: int
    group: int
    centre: int


FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)
QUANTISED = {
    TensorType.Q8_0: Numbers(8, 32, 128), TensorType.Q4_0: Numbers(4, 32, 8), TensorType.Q4_1: Numbers(4, 32, -1),
    TensorType.Q5_0: Numbers(5, 32, 16), TensorType.Q5_1: Numbers(5, 32, -1), TensorType.Q4_K: Numbers(4, 32, -1),
    TensorType.Q5_K: Numbers(5, 32, -1), TensorType.Q6_K: Numbers(6, 16, 32),
}  # fmt: skip
SUPPORTED = (*FLOATS, *QUANTISED)


def supported() -> str:
    """The names of the supported types."""
    return ", ".join(kind.name for kind in SUPPORTED)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A matrix [outputs, inputs] or a vector. name: what its file calls it. data: uint8, blocks row by row, a view
    into what the file's source keeps. row_order: None, or int32 [outputs], which row of `data` each output is."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    row_order: NDArray[np.int32] | None = None

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def inputs(self) -> int:
        return self.shape[-1]

    def rows(self, first: int, count: int) -> "Tensor":
        """`count` of its rows, from `first` on; of a tensor without an order of its rows."""
        size = len(self.data) // self.outputs
        data = self.data[first * size : (first + count) * size]
        return replace(self, data=data, shape=(count, *self.shape[1:]))

    def floats(self) -> NDArray[np.float32]:
        """A copy of a tensor of floats, such as a norm or bias, in float32 and in order. Raises `ValueError` for
        another type."""
        if self.type == TensorType.BF16:
            found = (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif self.type == TensorType.F16:
            found = self.data.view(np.float16).astype(np.float32)
        elif self.type == TensorType.F32:
            found = self.data.view(np.float32).copy()
        else:
            raise ValueError(f"{self.name} is of type {self.type.name}, not of floats")
        found = found.reshape(self.shape)
        return found if self.row_order is None else found[self.row_order]


def half_split(heads: int, head_dim: int) -> NDArray[np.int32]:
    """The order of rows [heads * head_dim] that makes neighbours, which a file rotates together, stand half a head
    apart."""
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)
