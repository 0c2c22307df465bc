"""Filling the engine's memory with a source's weights, and reading rows of tensors in float32."""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solm.backends.cpu import border
from solm.backends.cpu.files.layout import HeadForm, Layout, Part
from solm.backends.cpu.files.sources import Tensor, WeightSource
from solm.core.errors import DataError, SolmError, damaged

Progress = Callable[[int, int], None]
"""Called with how many of how many parts are done, the layers and the head."""
_HUGE_PAGE = 1 << 21
_ROWS_AT_ONCE = 1024
"""Of a head of floats, which are converted together."""


def _zeroed(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed memory [nbytes], in huge pages where the system has them: a step reads all weights, and would miss the TLB
    at every 4 KiB. Raises `SolmError` where there is not enough."""
    try:
        map_ = mmap.mmap(-1, nbytes + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError):
        raise SolmError(
            f"no memory for the model's weights in the layout of the cpu backend ({nbytes / 1e9:.1f} GB)"
        ) from None
    with suppress(OSError):
        map_.madvise(mmap.MADV_HUGEPAGE)
    content = np.frombuffer(map_, np.uint8)
    begin = -content.ctypes.data % _HUGE_PAGE
    return content[begin : begin + nbytes]


def repack(
    source: WeightSource,
    layout: Layout,
    library: ctypes.CDLL,
    threads: int,
    progress: Progress | None = None,
    memory: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """All weights of a source in `layout`, written one tensor after another to `memory` of zeros, or to new memory.

    Raises `DamagedFileError` with file and tensor for weights that are not finite, `SolmError` without memory.
    """
    memory, count = _zeroed(layout.nbytes) if memory is None else memory, len(layout.layers) + 1
    address: int = memory.ctypes.data
    for number, layer in enumerate(layout.layers):
        for part in (part for parts in layer.values() for part in parts):
            first = 0
            for name in part.tensors:
                tensor = source.tensor(name, number, part.expert)
                _repack(library, tensor, part, address, first, threads)
                source.release(tensor)
                first += tensor.outputs
        if progress is not None:
            progress(number + 1, count)
    head = source.tensor("head")
    repack_head(library, head, layout.head, address + layout.head_at, threads)
    source.release(head)
    if progress is not None:
        progress(count, count)
    return memory


def _repack(library: ctypes.CDLL, tensor: Tensor, part: Part, address: int, first: int, threads: int) -> None:
    message, order = border.message(), tensor.row_order
    at = {name: address + place for name, place in part.places.items()}
    code = library.solm_repack(
        tensor.type, tensor.data.ctypes.data, len(tensor.data), tensor.outputs, tensor.inputs,
        None if order is None else order.ctypes.data, part.form.target, first, part.outputs,
        at["data"], at.get("scale"), at.get("grid"), threads, message,
    )  # fmt: skip
    _check(code, message, tensor)


def head_at(form: HeadForm, address: int) -> Any:
    """The head, a `border.Head`, whose parts lie from `address` on."""
    places = {name: address + place for name, place in form.places().items() if name != "end"}
    return border.Head(bits=form.bits, group=form.group, centre=form.centre, **places)


def repack_head(library: ctypes.CDLL, tensor: Tensor, form: HeadForm, address: int, threads: int) -> None:
    """Write the output head to `address`, a multiple of 64, as `HeadForm.of` says. Raises as `repack` does."""
    if form.bits:
        head, message = head_at(form, address), border.message()
        code = library.solm_repack_head(
            tensor.type, tensor.data.ctypes.data, len(tensor.data) // max(tensor.outputs, 1), form.vocabulary,
            form.hidden, threads, ctypes.byref(head), message,
        )  # fmt: skip
        _check(code, message, tensor)
        return
    memory = (ctypes.c_uint8 * (form.vocabulary * form.hidden * form.number)).from_address(address)
    raw = np.ctypeslib.as_array(memory).reshape(form.vocabulary, -1)
    stored: NDArray[Any] = raw.view(np.uint16 if form.number == 2 else np.float32)
    for first in range(0, form.vocabulary, _ROWS_AT_ONCE):
        rows = np.arange(first, min(first + _ROWS_AT_ONCE, form.vocabulary))
        values = dequantise(library, tensor, rows)
        stored[rows] = bfloat16(values) if form.number == 2 else values


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 rounded to nearest, ties to even: uint16 of the same shape."""
    bits = values.view(np.uint32)
    return ((bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16).astype(np.uint16)


def dequantise(
    library: ctypes.CDLL, tensor: Tensor, rows: Sequence[int] | NDArray[np.int64] | None = None
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
    _check(code, message, tensor)
    return _finite(values, tensor)


def vector(source: WeightSource, name: str, layer: int | None = None, expert: int | None = None) -> NDArray[np.float32]:
    """A norm, bias, router or sinks in float32. Raises `DamagedFileError` where it is not finite."""
    tensor = source.tensor(name, layer, expert)
    return _finite(tensor.floats(), tensor)


def _finite(values: NDArray[np.float32], tensor: Tensor) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise damaged(tensor.file, tensor.name, "it holds values that are not finite")
    return values


def _check(code: int, message: ctypes.Array[ctypes.c_char], tensor: Tensor) -> None:
    try:
        border.check(code, message)
    except DataError as error:
        raise damaged(tensor.file, tensor.name, str(error)) from None
