"""The output head as the engine has it in memory, and its conversion from a GGUF tensor."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from solm.backends.cpu import border
from solm.backends.cpu.border import STRIP
from solm.backends.cpu.files.tensors import QUANTISED, Tensor
from solm.core.errors import DataError


@dataclass(frozen=True)
class HeadLayout:
    """The sizes of a head of integers [vocabulary, hidden]; csrc/structs.h and csrc/head.h describe its parts.

    bits: 4, 5, 6 or 8. group: input channels that share a step of the grid, 16 or 32; 0: a scale per output. centre:
    the number that stands for zero; -1: groups have lowest values.
    """

    vocabulary: int
    hidden: int
    bits: int
    group: int
    centre: int

    @classmethod
    def of(cls, tensor: Tensor) -> "HeadLayout":
        """As `repack_head` stores a tensor: its own numbers, or int8 for floats."""
        numbers = QUANTISED.get(tensor.type)
        bits, group, centre = (8, 0, 128) if numbers is None else (numbers.bits, numbers.group, numbers.centre)
        return cls(tensor.outputs, tensor.inputs, bits, group, centre)

    @property
    def strips(self) -> int:
        return -(-self.vocabulary // STRIP)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every part that there is, in their order in memory."""
        quads, low_bits = -(-self.hidden // 4), self.bits - 4
        sizes = {"data": self.strips * quads * 64}
        if low_bits:
            sizes["low"] = self.strips * -(-quads * low_bits // 4) * 64
        if self.group:
            sizes["grid"] = self.strips * (self.hidden // self.group) * (2 if self.centre < 0 else 1) * STRIP * 2
        else:
            sizes["scale"] = self.strips * STRIP * 4
        return sizes

    @property
    def room(self) -> int:
        """Bytes in memory, every part rounded up to whole cache lines."""
        return sum(_lines(size) for size in self.sizes.values())

    def at(self, address: int) -> Any:
        """The head whose parts lie one after another from `address` on, which must outlive what reads them."""
        head = border.Head(bits=self.bits, group=self.group, centre=self.centre)
        for name, size in self.sizes.items():
            setattr(head, name, address)
            address += _lines(size)
        return head


def repack_head(
    library: ctypes.CDLL, type_: int, rows: np.ndarray, layout: HeadLayout, address: int, threads: int
) -> Any:
    """Write the raw rows [vocabulary, bytes of a row] uint8 of a GGUF tensor of type `type_` to `address`.

    layout: the type's own bits, group and centre; for a tensor of floats 8, 0 and 128: int8 with a scale per output.
    address: of `layout.room` bytes, a multiple of 64. Raises `DataError` for what does not fit together
    and for values that are not finite, `SolmError` without memory.
    """
    if rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != layout.vocabulary or not rows.flags.c_contiguous:
        raise DataError(
            f"rows must be uint8 [{layout.vocabulary}, bytes of a row], got {rows.dtype} {list(rows.shape)}"
        )
    head, message = layout.at(address), border.message()
    code = library.solm_repack_head(
        type_, rows.ctypes.data, rows.shape[1], layout.vocabulary, layout.hidden, threads, ctypes.byref(head), message
    )
    border.check(code, message)
    return head


def _lines(size: int) -> int:
    return -(-size // 64) * 64
