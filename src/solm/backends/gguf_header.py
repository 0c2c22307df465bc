"""The header of a GGUF file: its metadata and its list of tensors. No weight is read."""

import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from solm.core.errors import DamagedFileError, SolmError

_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_LONGEST_KEPT = 4096
"""Numbers of an array that are kept. Longer ones belong to the tokenizer."""
_SCALARS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d", GGUFValueType.BOOL: "?",
}  # fmt: skip


@dataclass(frozen=True)
class ArrayInfo:
    """A long array, or one of strings, of which only type and length are kept."""

    type: str
    length: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. shape: in GGUF's order, the contiguous dimension first. offset: bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself before its weights."""

    path: Path
    version: int
    metadata: dict[str, Any]
    """Scalars and strings as they are, short arrays of numbers as lists, other arrays as `ArrayInfo`."""
    tensors: tuple[TensorInfo, ...]

    @property
    def family(self) -> str:
        return str(self.metadata["general.architecture"])

    def size(self, name: str) -> int | None:
        """The number `name` of the model's family, such as ``block_count``; None where the file has none."""
        value = self.metadata.get(f"{self.family}.{name}")
        return value if isinstance(value, int) else None

    @property
    def vocabulary(self) -> int | None:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, ArrayInfo) else self.size("vocab_size")

    def types(self) -> dict[str, tuple[int, int]]:
        """Per tensor type, how many tensors have it and how many bytes they take; largest first."""
        counts: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.type] += 1
            total[tensor.type] += tensor.bytes
        return {name: (counts[name], size) for name, size in total.most_common()}


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`.

    Raises `SolmError` where there is no such file, `DamagedFileError` that names file and field where it is truncated
    or is not GGUF, has an unknown type, or names a tensor that lies beyond its end.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise SolmError(f"cannot read {path}: {error.strerror}") from error


class _Reader:
    """Reads one file from its start; every read is checked against the file's size before it is made."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.size = path, file, os.fstat(file.fileno()).st_size
        self.place = 0

    def damaged(self, field: str, reason: str) -> DamagedFileError:
        return DamagedFileError(f"{self.path} is damaged: {field}: {reason}")

    def header(self) -> GgufHeader:
        if self._number("I", "magic") != GGUF_MAGIC:
            raise DamagedFileError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
        version = self._number("I", "version")
        if version & 0xFFFF == 0:
            raise self.damaged("version", "a big-endian file, which is not supported")
        if version not in _VERSIONS:
            raise self.damaged("version", f"{version} is not among {', '.join(map(str, _VERSIONS))}")
        tensors, fields = self._number("Q", "tensor count"), self._number("Q", "field count")
        metadata: dict[str, Any] = {}
        for index in range(fields):
            key = self._text(f"name of field {index}")
            if key in metadata:
                raise self.damaged(key, "it occurs twice")
            metadata[key] = self._value(key, self._kind(key))
        if not isinstance(metadata.get("general.architecture"), str):
            raise self.damaged("general.architecture", "it is missing")
        listed = [self._tensor(index) for index in range(tensors)]
        return GgufHeader(self.path, version, metadata, self._placed(listed, metadata))

    def _take(self, count: int, field: str) -> bytes:
        self._room(count, field)
        self.place += count
        return self.file.read(count)

    def _skip(self, count: int, field: str) -> None:
        self._room(count, field)
        self.place += count
        self.file.seek(self.place)

    def _room(self, count: int, field: str) -> None:
        if count > self.size - self.place:
            raise self.damaged(field, f"the file ends within it, at byte {self.size}")

    def _number(self, code: str, field: str) -> Any:
        (value,) = struct.unpack("<" + code, self._take(struct.calcsize("<" + code), field))
        return value

    def _text(self, field: str) -> str:
        try:
            return self._take(self._number("Q", field), field).decode()
        except UnicodeDecodeError:
            raise self.damaged(field, "it is not UTF-8") from None

    def _kind(self, field: str) -> GGUFValueType:
        number = self._number("I", field)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.damaged(field, f"unknown type {number}") from None

    def _value(self, field: str, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text(field)
        if kind != GGUFValueType.ARRAY:
            return self._number(_SCALARS[kind], field)
        inner, length = self._kind(field), self._number("Q", field)
        if inner == GGUFValueType.ARRAY:
            raise self.damaged(field, "an array of arrays, which is not supported")
        if inner == GGUFValueType.STRING:
            for _ in range(length):
                self._skip(self._number("Q", field), field)
        elif length <= _LONGEST_KEPT:
            return [self._number(_SCALARS[inner], field) for _ in range(length)]
        else:
            self._skip(length * struct.calcsize("<" + _SCALARS[inner]), field)
        return ArrayInfo(inner.name, length)

    def _tensor(self, index: int) -> TensorInfo:
        name = self._text(f"name of tensor {index}")
        dimensions = self._number("I", name)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(name, f"{dimensions} dimensions; expected 1 to {_MOST_DIMENSIONS}")
        shape = tuple(self._number("Q", name) for _ in range(dimensions))
        number = self._number("I", name)
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise self.damaged(name, f"unknown tensor type {number}") from None
        block, size = GGML_QUANT_SIZES[kind]
        if shape[0] % block:
            raise self.damaged(name, f"rows of {shape[0]} values; type {kind.name} has blocks of {block}")
        return TensorInfo(name, shape, kind.name, math.prod(shape) // block * size, self._number("Q", name))

    def _placed(self, tensors: list[TensorInfo], metadata: dict[str, Any]) -> tuple[TensorInfo, ...]:
        """The tensors with offsets from the start of the file, checked against its size."""
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged("general.alignment", f"{alignment!r} is not a power of two")
        start = -(-self.place // alignment) * alignment
        placed: dict[str, TensorInfo] = {}
        for tensor in tensors:
            if tensor.name in placed:
                raise self.damaged(tensor.name, "it occurs twice")
            if tensor.offset % alignment:
                raise self.damaged(tensor.name, f"offset {tensor.offset} is not a multiple of {alignment}")
            offset = start + tensor.offset
            if offset + tensor.bytes > self.size:
                raise self.damaged(
                    tensor.name, f"bytes {offset} to {offset + tensor.bytes} lie past the end, at byte {self.size}"
                )
            placed[tensor.name] = TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.bytes, offset)
        return tuple(placed.values())
