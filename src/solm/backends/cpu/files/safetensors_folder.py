"""A transformers folder of safetensors as a source of weights, mapped into memory."""

import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType as TensorType
from numpy.typing import NDArray

from solm.backends.cpu.files.config_spec import from_config
from solm.backends.cpu.files.identity import identity_of, times_of
from solm.backends.cpu.files.source import check_tensors, ignored_of, meant, name_in
from solm.backends.cpu.files.tensors import FLOATS, Tensor
from solm.core.errors import DamagedFileError, SolmError
from solm.core.files import parse_object, read_object

_TYPES = {kind.name: kind for kind in FLOATS}
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_ENTRY = ("dtype", "shape", "data_offsets")
_LONGEST_HEADER = 100_000_000
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFolder:
    """The model in `folder`: its config.json and its safetensors, one file or several with an index. Tensors are
    views into read-only maps of the files, which other processes share.

    Raises `SolmError` where there is no such model, `DamagedFileError` with file and field for content that cannot be,
    `UnsupportedModelError` for a model that is not described here.
    """

    def __init__(self, folder: Path):
        config = read_object(folder / "config.json")
        self.spec = from_config(config, folder / "config.json", folder.resolve().name)
        self._tensors: dict[str, _Stored] = {}
        self._files: list[tuple[Path, int]] = []
        for path in _shards(folder):
            self._add(path)
        listed = {name: (found.type, found.shape) for name, found in self._tensors.items()}
        check_tensors(self.spec, listed, gguf=False, ignored=ignored_of(self.spec, listed))
        self._config = folder / "config.json"

    def _add(self, path: Path) -> None:
        """Map a file and list its tensors."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                map_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except (OSError, ValueError) as error:  # ValueError: no name of a file, such as one with a NUL
            raise SolmError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        length = int.from_bytes(map_[:8], "little") if map_ is not None and size >= 8 else 0
        if map_ is None or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise DamagedFileError(f"{path} is damaged: header: it is said to take {length} of {size} bytes")
        header = parse_object(path, map_[8 : 8 + length])
        self._files.append((path, 8 + length))
        content = np.frombuffer(map_, np.uint8)
        for name, entry in header.items():
            if name != "__metadata__":
                self._tensors[name] = _stored(path, name, entry, 8 + length, map_, content)

    @property
    def identity(self) -> str:
        return identity_of([(self._config, 0), *self._files])

    @property
    def times(self) -> list[int]:
        return times_of(self._files)

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        theirs = name_in(self.spec, name, layer, gguf=False)
        found = self._tensors[theirs]
        stored = Tensor(theirs, found.type, found.shape, found.content[found.begin : found.end])
        return meant(self.spec, name, layer, stored, gguf=False)

    def release(self, tensor: Tensor) -> None:
        found = self._tensors[tensor.name]
        begin = found.begin // mmap.PAGESIZE * mmap.PAGESIZE
        found.map.madvise(mmap.MADV_DONTNEED, begin, found.end - begin)


class _Stored(NamedTuple):
    """Where a tensor is: bytes [begin, end) of a file."""

    map: mmap.mmap
    content: NDArray[np.uint8]
    type: TensorType
    shape: tuple[int, ...]
    begin: int
    end: int


def _stored(path: Path, name: str, entry: Any, start: int, map_: mmap.mmap, content: NDArray[np.uint8]) -> _Stored:
    """The tensor that an entry of a header describes; its data begins at `start`."""

    def damaged(reason: str) -> DamagedFileError:
        return DamagedFileError(f"{path} is damaged: {name[:100]}: {reason}")

    dtype, shape, place = (entry.get(key) if isinstance(entry, dict) else None for key in _ENTRY)
    if not isinstance(shape, list) or not isinstance(place, list):
        raise damaged(f"its entry is no object with {', '.join(_ENTRY)}")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise damaged(f"type {str(dtype)[:20]} is not among {', '.join(_TYPES)}")
    for what, numbers in (("shape", shape), ("data_offsets", place)):
        if any(type(number) is not int or number < 0 for number in numbers):
            raise damaged(f"{what}: it is no list of whole numbers")
    if len(place) != 2 or place[1] - place[0] != math.prod(shape) * _SIZES[dtype]:
        raise damaged(f"bytes {place} do not hold {dtype} of shape {shape}")
    if start + place[1] > len(content):
        raise damaged(f"its bytes {place} lie past the end of the file")
    return _Stored(map_, content, _TYPES[dtype], tuple(shape), start + place[0], start + place[1])


def _shards(folder: Path) -> list[Path]:
    """The files of weights in `folder`."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise SolmError(f"{folder} has neither {_SINGLE} nor {_INDEX}")
    names = read_object(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
        raise DamagedFileError(f"{folder / _INDEX} is damaged: weight_map: it does not name files")
    return [folder / name for name in sorted(set(names.values()))]
