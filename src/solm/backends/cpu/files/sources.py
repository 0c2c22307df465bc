"""What the engine is built from: a GGUF file, a folder of safetensors or a loaded model, behind one interface."""

import hashlib
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType as TensorType
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from solm.backends.cpu.files.config import from_config, from_gguf
from solm.backends.cpu.files.fields import shown
from solm.backends.cpu.files.spec import ModelSpec, Place
from solm.backends.gguf_header import mapped, read_header
from solm.backends.names import folder_of, gguf_of
from solm.core.errors import DamagedFileError, SolmError, UnsupportedModelError, damaged, first_line
from solm.core.files import read_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VECTORS = ("norm", "bias", "router", "sinks")
"""How our names of tensors end that are read as floats: vectors, and the small matrices of routers."""
ROTATED = ("q", "k", "q_bias", "k_bias")
"""Our names of tensors whose rows belong to channels of heads that are rotated."""
_NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors of GGUF files that the description is made of, or that belong to longer contexts than it has."""
_TYPES = {
    "torch.float32": TensorType.F32, "torch.float16": TensorType.F16, "torch.bfloat16": TensorType.BF16,
}  # fmt: skip
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SAMPLES, _SAMPLE = 64, 4096
"""Places in a file, and bytes at each, that an identity is made of."""


@dataclass(frozen=True)
class Numbers:
    """What a quantised type becomes in memory. bits: of a number. group: inputs that share a step. centre: the number
    that means zero; -1 where groups have lowest values of their own."""

    bits: int
    group: int
    centre: int


FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)
QUANTISED = {
    TensorType.Q8_0: Numbers(8, 32, 128), TensorType.Q4_0: Numbers(4, 32, 8), TensorType.Q4_1: Numbers(4, 32, -1),
    TensorType.Q5_0: Numbers(5, 32, 16), TensorType.Q5_1: Numbers(5, 32, -1), TensorType.Q4_K: Numbers(4, 32, -1),
    TensorType.Q5_K: Numbers(5, 32, -1), TensorType.Q6_K: Numbers(6, 16, 32), TensorType.Q2_K: Numbers(4, 16, -1),
    TensorType.Q3_K: Numbers(4, 16, 4), TensorType.IQ4_NL: Numbers(8, 32, 128), TensorType.IQ4_XS: Numbers(8, 32, 128),
    TensorType.MXFP4: Numbers(5, 32, 12),
}  # fmt: skip
_NAMED = {kind.name: kind for kind in FLOATS}
"""By their names in files of safetensors."""
_SIZES = {TensorType.F32: 4, TensorType.I8: 1}
"""Bytes of a number, where they are not 2."""
SUPPORTED = (*FLOATS, *QUANTISED)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A matrix [outputs, inputs] or a vector. name: what its file calls it. data: uint8, blocks row by row, a view
    into what the file's source keeps. row_order: None, or int32 [outputs], which row of `data` each output is. file:
    what messages name."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    row_order: NDArray[np.int32] | None = None
    file: Path | str = "the file"

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
            values = (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif self.type == TensorType.F16:
            values = self.data.view(np.float16).astype(np.float32)
        elif self.type == TensorType.F32:
            values = self.data.view(np.float32).copy()
        else:
            raise ValueError(f"{self.name} is of type {self.type.name}, not of floats")
        values = values.reshape(self.shape)
        return values if self.row_order is None else values[self.row_order]


def half_split(heads: int, head_dim: int, rotary: int) -> NDArray[np.int32]:
    """The order of rows [heads * head_dim] that makes neighbours among the first `rotary` of a head, which a file
    rotates together, stand half as many apart."""
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim)
    rows[:, :rotary] = rows[:, :rotary].reshape(heads, -1, 2).swapaxes(1, 2).reshape(heads, rotary)
    return rows.reshape(-1)


def _gguf_blocks(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of MXFP4 as OpenAI stores them, blocks [rows, n, 16] and scales [rows, n], as the bytes of GGUF's blocks: a
    byte of the former holds neighbours, one of the latter numbers that are 16 apart."""
    low, high, made = blocks[..., :8], blocks[..., 8:], np.empty((*scales.shape, 17), np.uint8)
    made[..., 0], made[..., 1::2], made[..., 2::2] = scales, low & 15 | high << 4, low >> 4 | high & 240
    return made.reshape(-1)


class WeightSource(ABC):
    """A model's description and its tensors. gguf: which of a tensor's two names the source has it under."""

    spec: ModelSpec
    gguf = False

    def __init__(self) -> None:
        self._files: list[tuple[Path, int]] = []  # and bytes of their headers
        self._packed: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
        """Weights of experts in MXFP4 as OpenAI stores them: blocks [experts, outputs, n, 16] and scales [.., n]."""

    @property
    def identity(self) -> str | None:
        """A digest that other files do not have; None for weights that are not in files."""
        return identity_of(self._files) if self._files else None

    @property
    def times(self) -> list[int]:
        """When its files were changed last, in nanoseconds."""
        return [path.stat().st_mtime_ns for path, _ in self._files]

    def tensor(self, name: str, layer: int | None = None, expert: int | None = None) -> Tensor:
        """The tensor `name` (see `solm.backends.cpu.files.spec`) of a layer, or with None of the model: its rows of one
        that is fused or has those of all experts, and norms with what transformers adds to them. The head of a model
        with a tied head is its embedding."""
        spec = self.spec
        place = spec.places(layer)["embedding" if name == "head" and spec.tied_head else name]
        stored_name = self._name(place, expert)
        stored = replace(self._stored(stored_name), file=spec.file)
        shape, members = self._stack(place, name, stored_name)
        wanted = spec.shape(name)
        if place.by_heads and not self.gguf:
            by_heads = stored.data.reshape(spec.heads, len(members), -1)[:, members.index(name)]
            stored = replace(stored, shape=wanted, data=np.ascontiguousarray(by_heads).reshape(-1))
        elif stored_name in self._packed:
            of_expert = expert or 0, slice(members.index(name), None, len(members))
            blocks, scales = (part[of_expert] for part in self._packed[stored_name])
            stored = replace(stored, shape=wanted, data=_gguf_blocks(blocks, scales))
        elif place.transposed and not self.gguf:
            numbers = stored.data.view(np.uint32 if stored.type == TensorType.F32 else np.uint16).reshape(shape)
            own = np.ascontiguousarray(numbers[expert, ..., members.index(name) :: len(members)].T)
            stored = replace(stored, shape=wanted, data=own.reshape(-1).view(np.uint8))
        elif len(shape) > len(wanted) or len(members) > 1:
            rows, *inputs = shape[-len(wanted) :]
            first = (expert or 0) * rows + sum(spec.shape(other)[0] for other in members[: members.index(name)])
            count = math.prod(shape[: -len(wanted)]) * rows
            stored = replace(stored, shape=(count, *inputs)).rows(first, wanted[0])
        description = spec.description
        if (description.neighbours or (self.gguf and description.interleaved)) and name in ROTATED:
            heads, rotary = wanted[0] // spec.head_dim, 2 * len(spec.rope.inverse_frequencies)
            stored = replace(stored, row_order=half_split(heads, spec.head_dim, rotary))
        if description.norm_offset and name.endswith("norm") and not self.gguf:
            values = stored.floats() + np.float32(description.norm_offset)
            stored = replace(stored, type=TensorType.F32, data=values.view(np.uint8))
        return stored

    def release(self, tensor: Tensor) -> None:  # noqa: B027
        """Let go of the memory that reading `tensor` took, where it is mapped from a file."""

    @abstractmethod
    def _stored(self, name: str) -> Tensor:
        """The tensor that the source itself calls `name`, as it is there."""

    @abstractmethod
    def _has(self, name: str) -> bool:
        """Whether there is a tensor that the source itself calls `name`."""

    def _name(self, place: Place, expert: int | None = None) -> str:
        if self.gguf:
            return place.gguf
        in_memory = not place.saved or self._has(place.transformers)
        return place.transformers if in_memory else place.saved.replace("{}", str(expert))

    def _stack(self, place: Place, name: str, stored: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The shape of the tensor `stored` that has ours, and our names of all that lie in it, one after another, in
        each of its experts."""
        alone = "{}" in place.saved and stored not in (place.gguf, place.transformers)
        members = (name,) if alone or not place.fused or (self.gguf and place.of_experts) else place.fused
        shape = (sum(self.spec.shape(other)[0] for other in members), *self.spec.shape(name)[1:])
        shape = shape[::-1] if place.transposed and not self.gguf and stored not in self._packed else shape
        return (self.spec.experts, *shape) if place.of_experts and not alone else shape, members

    def _check(self, listed: Mapping[str, tuple[TensorType, tuple[int, ...]]]) -> None:
        """Check that the source has the tensors that `spec` asks for, in their shapes and in supported types, and no
        others. listed: types and shapes of all by its own names.

        Raises `DamagedFileError` with file and tensor; `UnsupportedModelError` for a tensor that the family does not
        have.
        """
        spec = self.spec
        ignored = _NOT_WEIGHTS if self.gguf else [name for name in listed if name.endswith("rotary_emb.inv_freq")]
        copies = [spec.description.model["head"].transformers] if spec.tied_head and not self.gguf else []
        left = set(listed).difference(ignored, copies)
        for layer in (None, *range(spec.layers)):
            for ours, place in spec.places(layer).items():
                experts = range(spec.experts) if place.of_experts else (None,)
                for name in dict.fromkeys(self._name(place, expert) for expert in experts):
                    if name not in listed:
                        raise damaged(spec.file, name, "it is missing")
                    kind, shape = listed[name]
                    left.discard(name)
                    wanted, _ = self._stack(place, ours, name)
                    if shape != wanted and (ours != "shared_router" or shape != wanted[1:]):
                        raise damaged(spec.file, name, f"its shape is {list(shape)}, not {list(wanted)}")
                    allowed = FLOATS if ours.endswith(VECTORS) else SUPPORTED
                    if kind not in allowed:
                        names = ", ".join(some.name for some in allowed)
                        raise damaged(spec.file, name, f"type {kind.name} is not among {names}")
        if left:
            raise UnsupportedModelError(f"{spec.file}: tensor {shown(min(left))} is not known in family {spec.family}")


class _Place(NamedTuple):
    """Where a tensor is: bytes [begin, end) of a file that is mapped into memory."""

    map: mmap.mmap
    type: TensorType
    shape: tuple[int, ...]
    begin: int
    end: int


class _MappedFiles(WeightSource):
    """Tensors that are views into read-only maps of files, which other processes share."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, _Place] = {}

    def release(self, tensor: Tensor) -> None:
        place = self._places[tensor.name]
        begin = place.begin // mmap.PAGESIZE * mmap.PAGESIZE
        place.map.madvise(mmap.MADV_DONTNEED, begin, place.end - begin)

    def _stored(self, name: str) -> Tensor:
        place = self._places[name]
        return Tensor(name, place.type, place.shape, np.frombuffer(place.map, np.uint8)[place.begin : place.end])

    def _has(self, name: str) -> bool:
        return name in self._places

    def _check_places(self) -> None:
        self._check({name: (place.type, place.shape) for name, place in self._places.items()})


def identity_of(files: Iterable[tuple[Path, int]]) -> str:
    """A digest of every file's size, of its first `header` bytes and of samples from all over it. files: (path,
    header).

    Two models differ in all their weights, so samples tell them apart. A file that was changed in one place differs in
    its time, see `WeightSource.times`.
    """
    digest = hashlib.sha256()
    for path, header in files:
        size = path.stat().st_size
        digest.update(f"{size} {header} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(header))
            for sample in range(_SAMPLES):
                file.seek(header + max(size - header - _SAMPLE, 0) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


class GgufFile(_MappedFiles):
    """The GGUF file at `path`.

    Raises `SolmError` where there is no such file, `DamagedFileError` with file and field for anything in its header
    that cannot be, `UnsupportedModelError` for a model that is not described here.
    """

    gguf = True

    def __init__(self, path: Path):
        super().__init__()
        header = read_header(path)
        self.spec = from_gguf(header)
        map_ = mapped(path)
        for tensor in header.tensors:
            kind, end = TensorType.__members__[tensor.type], tensor.offset + tensor.bytes
            self._places[tensor.name] = _Place(map_, kind, tensor.shape[::-1], tensor.offset, end)
        self._files = [(path, min((tensor.offset for tensor in header.tensors), default=0))]
        self._check_places()


class SafetensorsFolder(_MappedFiles):
    """The model in `folder`: its config.json and its safetensors, one file or several with an index.

    Raises `SolmError` where there is no such model, `DamagedFileError` with file and field for content that cannot be,
    `UnsupportedModelError` for a model that is not described here.
    """

    def __init__(self, folder: Path):
        super().__init__()
        path = folder / "config.json"
        self.spec = from_config(read_object(path), path, folder.resolve().name)
        self._files = [(path, 0)]
        for shard in _shards(folder):
            self._add(shard)
        self._pair(path)
        self._check_places()

    def _pair(self, config: Path) -> None:
        """Make tensors of the blocks and scales of MXFP4 that OpenAI's files of gpt-oss have."""
        layers = map(self.spec.places, range(self.spec.layers))
        known = {place.transformers for layer in layers for place in layer.values() if place.transposed}
        for name in [name for name, place in self._places.items() if place.type == TensorType.I8]:
            stem, _, kind = name.rpartition("_")
            blocks, scales = self._places.get(f"{stem}_blocks"), self._places.get(f"{stem}_scales")
            if stem not in known or kind not in ("blocks", "scales") or blocks is None or scales is None:
                raise damaged(config.parent, name[:100], f"type U8 is not among {', '.join(_NAMED)}")
            if len(blocks.shape) != 4 or blocks.shape != (*scales.shape, 16) or blocks.type != scales.type:
                shapes = f"blocks {list(blocks.shape)} do not fit scales {list(scales.shape)}"
                raise damaged(config.parent, name[:100], shapes)
            shape = (*blocks.shape[:2], blocks.shape[2] * 32)
            self._packed[stem] = (
                self._stored(f"{stem}_blocks").data.reshape(blocks.shape),
                self._stored(f"{stem}_scales").data.reshape(scales.shape),
            )
            self._places[stem] = blocks._replace(type=TensorType.MXFP4, shape=shape)
        for stem in self._packed:
            del self._places[f"{stem}_blocks"], self._places[f"{stem}_scales"]

    def _add(self, path: Path) -> None:
        """Map a file and list its tensors, which lie next to one another."""
        map_ = mapped(path)
        try:
            with safe_open(path, framework="numpy") as file:  # checks the header against the file's size
                listed = [(name, file.get_slice(name)) for name in file.offset_keys()]
        except SafetensorError as error:
            raise DamagedFileError(f"{path} is damaged: {first_line(error)}") from error
        begin = 8 + int.from_bytes(map_[:8], "little")
        self._files.append((path, begin))
        for name, entry in listed:
            kind = TensorType.I8 if entry.get_dtype() == "U8" else _NAMED.get(entry.get_dtype())
            shape = tuple(entry.get_shape())
            if kind is None:
                raise damaged(path, name[:100], f"type {entry.get_dtype()} is not among {', '.join(_NAMED)}")
            end = begin + math.prod(shape) * _SIZES.get(kind, 2)
            self._places[name] = _Place(map_, kind, shape, begin, end)
            begin = end


def _shards(folder: Path) -> list[Path]:
    """The files of weights in `folder`."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise SolmError(f"{folder} has neither {_SINGLE} nor {_INDEX}")
    names = read_object(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and "/" not in name for name in names.values()):
        raise damaged(folder / _INDEX, "weight_map", "it does not name files")
    return [folder / name for name in sorted(set(names.values()))]


class LoadedModel(WeightSource):
    """The parameters of `model`, which must stay as they are while the source is used. Those in float64 are read in
    float32.

    Raises `UnsupportedModelError` for weights that are quantised or not on the CPU and for a model that is not
    described here, `DamagedFileError` for parameters that are not those of its configuration.
    """

    def __init__(self, model: "PreTrainedModel"):
        import torch

        super().__init__()
        config = model.config.get_text_config(decoder=True)
        self.spec = from_config(
            config.to_dict(), "the model's configuration", str(config.name_or_path or config.model_type)
        )
        self._parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for name, weight in self._parameters.items():
            if type(weight) is not torch.Tensor or not weight.is_floating_point():
                raise UnsupportedModelError(f"{name} is quantised already; weights must be floats")
            if weight.device.type != "cpu":
                raise UnsupportedModelError(f"{name} is on {weight.device}; weights must be on the CPU")
        self._check({name: (_type_of(weight), tuple(weight.shape)) for name, weight in self._parameters.items()})

    def _stored(self, name: str) -> Tensor:
        import torch

        weight = self._parameters[name]
        weight = (weight if str(weight.dtype) in _TYPES else weight.float()).contiguous()
        return Tensor(name, _type_of(weight), tuple(weight.shape), weight.flatten().view(torch.uint8).numpy())

    def _has(self, name: str) -> bool:
        return name in self._parameters


def _type_of(weight: "torch.Tensor") -> TensorType:
    return _TYPES.get(str(weight.dtype), TensorType.F32)


def source_of(name: str, revision: str | None = None) -> WeightSource:
    """The files of a model: a GGUF file, or a folder of safetensors, which of a hub id is downloaded.

    Raises `SolmError` where there is no such model, `DamagedFileError` for files that cannot be, and
    `UnsupportedModelError` for a family that the cpu backend does not know.
    """
    gguf = gguf_of(name)
    return SafetensorsFolder(folder_of(name, revision)) if gguf is None else GgufFile(gguf)
