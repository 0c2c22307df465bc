"""The header of a GGUF file: its metadata and its list of tensors. No weight is read."""

import math
import mmap
import os
import struct
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFReader, GGUFValueType

from solm.core.errors import DamagedFileError, SolmError, damaged, printable

_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_MOST_FIELDS, _MOST_TENSORS = 1 << 16, 1 << 17
_LONGEST_TEXT, _LONGEST_ARRAY = 1 << 24, 1 << 24
"""Bytes of a text, and members of an array. What claims to be longer is damage that would take long to read."""
_LONGEST_SHOWN = 100
"""Letters of a name in a message."""
_LONGEST_KEPT = 4096
"""Numbers of an array that are kept. Longer ones belong to the tokenizer."""
_SCALARS = GGUFReader.gguf_scalar_to_np
"""NumPy's types of numbers by GGUF's."""


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
        return value if type(value) is int else None

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
        status = path.stat()
    except OSError as error:
        raise SolmError(f"cannot read {path}: {error.strerror}") from error
    return _read(path, status.st_size, status.st_mtime_ns)


def read_arrays(path: Path, names: frozenset[str]) -> dict[str, list[Any]]:
    """The long arrays `names` of a file's metadata, as far as it has them. Raises as `read_header` does."""
    metadata = _Reader(path, names).header().metadata
    return {name: metadata[name] for name in names if isinstance(metadata.get(name), list)}


@lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> GgufHeader:
    """The header of a file of this size and time; a large vocabulary takes a quarter of a second to pass over."""
    return _Reader(path).header()


def mapped(path: Path) -> mmap.mmap:
    """The content of a file, mapped read-only. Raises `SolmError` for one that cannot be read, `DamagedFileError` for
    an empty one."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise damaged(path, "header", "the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: no name of a file, such as one with a NUL
        raise SolmError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


class _Reader:
    """Reads one file from its start; every read is checked against the file's size before it is made. whole: arrays
    that are kept whatever their length."""

    def __init__(self, path: Path, whole: frozenset[str] = frozenset()):
        self.path, self.content, self.whole = path, mapped(path), whole
        self.size, self.place = len(self.content), 0

    def damaged(self, field: str, reason: str) -> DamagedFileError:
        return damaged(self.path, printable(field[:_LONGEST_SHOWN]), reason)

    def header(self) -> GgufHeader:
        if self._integer(4, "magic") != GGUF_MAGIC:
            raise DamagedFileError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
        version = self._integer(4, "version")
        if version & 0xFFFF == 0:
            raise self.damaged("version", "a big-endian file, which is not supported")
        if version not in _VERSIONS:
            raise self.damaged("version", f"{version} is not among {', '.join(map(str, _VERSIONS))}")
        tensors, fields = self._count("tensor count", _MOST_TENSORS), self._count("field count", _MOST_FIELDS)
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

    def _skip(self, count: int, field: str) -> int:
        """Where the next `count` bytes begin, which are passed over."""
        begin = self.place
        if count > self.size - begin:
            raise self.damaged(field, f"the file ends within it, at byte {self.size}")
        self.place += count
        return begin

    def _integer(self, size: int, field: str) -> int:
        """A whole number of `size` bytes."""
        begin = self._skip(size, field)
        return int.from_bytes(self.content[begin : self.place], "little")

    def _numbers(self, kind: GGUFValueType, count: int, field: str) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        return list(np.frombuffer(self.content, dtype, count, self._skip(count * dtype.itemsize, field)).tolist())

    def _count(self, field: str, most: int) -> int:
        count = self._integer(8, field)
        if count > most:
            raise self.damaged(field, f"{count} is more than {most}")
        return count

    def _text(self, field: str) -> str:
        begin = self._skip(self._count(field, _LONGEST_TEXT), field)
        try:
            return self.content[begin : self.place].decode()
        except UnicodeDecodeError:
            raise self.damaged(field, "it is not UTF-8") from None

    def _kind(self, field: str) -> GGUFValueType:
        number = self._integer(4, field)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.damaged(field, f"unknown type {number}") from None

    def _value(self, field: str, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text(field)
        if kind != GGUFValueType.ARRAY:
            return self._numbers(kind, 1, field)[0]
        inner, length = self._kind(field), self._count(field, _LONGEST_ARRAY)
        if inner == GGUFValueType.ARRAY:
            raise self.damaged(field, "an array of arrays, which is not supported")
        if inner == GGUFValueType.STRING and field in self.whole:
            return [self._text(field) for _ in range(length)]
        if inner == GGUFValueType.STRING:
            self._skip_texts(length, field)
        elif length <= _LONGEST_KEPT or field in self.whole:
            return self._numbers(inner, length, field)
        else:
            self._skip(length * np.dtype(_SCALARS[inner]).itemsize, field)
        return ArrayInfo(inner.name, length)

    def _skip_texts(self, count: int, field: str) -> None:
        """Pass over texts; a vocabulary has hundreds of thousands."""
        length_at, place, last = struct.Struct("<Q").unpack_from, self.place, self.size - 8
        for _ in range(count):
            place += 8 if place > last else 8 + length_at(self.content, place)[0]
            if place > last + 8:
                break
        self._skip(place - self.place, field)

    def _tensor(self, index: int) -> TensorInfo:
        name = self._text(f"name of tensor {index}")
        dimensions = self._integer(4, name)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(name, f"{dimensions} dimensions; expected 1 to {_MOST_DIMENSIONS}")
        shape = tuple(self._integer(8, name) for _ in range(dimensions))
        number = self._integer(4, name)
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise self.damaged(name, f"unknown tensor type {number}") from None
        block, size = GGML_QUANT_SIZES[kind]
        if shape[0] % block:
            raise self.damaged(name, f"rows of {shape[0]} values; type {kind.name} has blocks of {block}")
        return TensorInfo(name, shape, kind.name, math.prod(shape) // block * size, self._integer(8, name))

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
            placed[tensor.name] = replace(tensor, offset=offset)
        for before, after in pairwise(sorted(placed.values(), key=lambda tensor: tensor.offset)):
            if after.offset < before.offset + before.bytes:
                raise self.damaged(after.name, f"it overlaps {before.name[:_LONGEST_SHOWN]}")
        return tuple(placed.values())
