"""A GGUF file as a source of weights, mapped into memory."""

import mmap
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType as TensorType

from solm.backends.cpu.files.gguf_spec import from_gguf
from solm.backends.cpu.files.identity import identity_of, times_of
from solm.backends.cpu.files.source import check_tensors, meant, name_in
from solm.backends.cpu.files.tensors import Tensor, half_split
from solm.backends.gguf_header import TensorInfo, read_header
from solm.core.errors import SolmError

_NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors that the description is made of, or that belong to longer contexts than it has."""


class GgufFile:
    """The GGUF file at `path`. Its tensors are views into a read-only map of the file, which other processes share.

    Raises `SolmError` where there is no such file, `DamagedFileError` with file and field for anything in its header
    that cannot be, `UnsupportedModelError` for a model that is not described here.
    """

    def __init__(self, path: Path):
        header = read_header(path)
        self.spec = from_gguf(header)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        listed = {name: (_type(found), found.shape[::-1]) for name, found in self._tensors.items()}
        check_tensors(self.spec, listed, gguf=True, ignored=_NOT_WEIGHTS)
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SolmError(f"cannot read {path}: {error.strerror}") from error
        self._content = np.frombuffer(self._map, np.uint8)
        self._files = [(path, min(tensor.offset for tensor in header.tensors))]

    @property
    def identity(self) -> str:
        return identity_of(self._files)

    @property
    def times(self) -> list[int]:
        return times_of(self._files)

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        found = self._tensors[name_in(self.spec, name, layer, gguf=True)]
        order = None
        if self.spec.description.interleaved and name in ("q", "k", "q_bias", "k_bias"):
            order = half_split(self.spec.heads if name.startswith("q") else self.spec.kv_heads, self.spec.head_dim)
        data = self._content[found.offset : found.offset + found.bytes]
        stored = Tensor(found.name, _type(found), found.shape[::-1], data, order)
        return meant(self.spec, name, layer, stored, gguf=True)

    def release(self, tensor: Tensor) -> None:
        found = self._tensors[tensor.name]
        begin = found.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, begin, found.offset + found.bytes - begin)


def _type(tensor: TensorInfo) -> TensorType:
    return TensorType.__members__[tensor.type]
