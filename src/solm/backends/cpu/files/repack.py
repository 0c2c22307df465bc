"""Filling the engine's memory with a source's weights, and reading rows of tensors in float32."""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from solm.backends.cpu import border
from solm.backends.cpu.files.layout import Layout, Part
from solm.backends.cpu.files.source import WeightSource
from solm.backends.cpu.files.tensors import Tensor
from solm.core.errors import DamagedFileError, DataError, SolmError

Progress = Callable[[int, int], None]
"""Told how many of how many layers are done."""


class Arena:
    """Zeroed memory of `nbytes` in huge pages, where the system has them, for as long as the object lives. Raises
    `SolmError` where there is not enough."""

    def __init__(self, library: ctypes.CDLL, nbytes: int):
        self._library, self.nbytes = library, nbytes
        self._handle: int | None = library.solm_arena(nbytes)
        if not self._handle:
            raise SolmError(
                f"no memory for the model's weights in the layout of the cpu backend ({nbytes / 1e9:.1f} GB)"
            )
        self.address: int = library.solm_arena_data(self._handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.solm_arena_free(self._handle)
            self._handle = None


def repack(
    source: WeightSource,
    layout: Layout,
    library: ctypes.CDLL,
    address: int,
    threads: int,
    progress: Progress | None = None,
) -> None:
    """Write all matrices of `layout` to zeroed memory from `address` on, one tensor after another.

    Raises `DamagedFileError` with file and tensor for weights that are not finite, `SolmError` without memory.
    """
    for number, layer in enumerate(layout.layers):
        for part in (part for site in layer.values() for part in site.parts):
            first = 0
            for name in part.tensors:
                tensor = source.tensor(name, number)
                _repack(library, tensor, part.moved(address), first, threads, str(source.spec.file))
                source.release(tensor)
                first += tensor.outputs
        if progress is not None:
            progress(number + 1, len(layout.layers))


def _repack(library: ctypes.CDLL, tensor: Tensor, part: Part, first: int, threads: int, file: str) -> None:
    message = border.message()
    order = tensor.row_order
    code = library.solm_repack(
        tensor.type, tensor.data.ctypes.data, len(tensor.data), tensor.outputs, tensor.inputs,
        None if order is None else order.ctypes.data, part.form.target, first, part.outputs,
        part.data, part.scale, part.grid, threads, message,
    )  # fmt: skip
    _check(code, message, file, tensor.name)


def dequantise(
    library: ctypes.CDLL, tensor: Tensor, rows: Sequence[int] | NDArray[np.int64] | None = None, file: str = "the file"
) -> NDArray[np.float32]:
    """Rows of a matrix [outputs, inputs] in float32; None for all. Raises `DamagedFileError` for a row that it lacks
    or that is not finite."""
    chosen: NDArray[np.int64] = np.arange(tensor.outputs) if rows is None else np.array(rows, np.int64)
    if tensor.row_order is not None:
        chosen = tensor.row_order.astype(np.int64)[chosen]
    values = np.empty((len(chosen), tensor.inputs), np.float32)
    message = border.message()
    code = library.solm_dequantise(
        tensor.type, tensor.data.ctypes.data, len(tensor.data), tensor.outputs, tensor.inputs,
        chosen.ctypes.data, len(chosen), values.ctypes.data, message,
    )  # fmt: skip
    _check(code, message, file, tensor.name)
    return _finite(values, file, tensor.name)


def vector(source: WeightSource, name: str, layer: int | None = None) -> NDArray[np.float32]:
    """A norm or bias in float32. Raises `DamagedFileError` where it is not finite."""
    tensor = source.tensor(name, layer)
    return _finite(tensor.floats(), str(source.spec.file), tensor.name)


def _finite(values: NDArray[np.float32], file: str, name: str) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise DamagedFileError(f"{file} is damaged: {name}: it holds values that are not finite")
    return values


def _check(code: int, message: ctypes.Array[ctypes.c_char], file: str, name: str) -> None:
    try:
        border.check(code, message)
    except DataError as error:
        raise DamagedFileError(f"{file} is damaged: {name}: {error}") from None
