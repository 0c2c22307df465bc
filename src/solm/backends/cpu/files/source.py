"""What the engine is built from: a GGUF file, a folder of safetensors or a loaded model, behind one protocol."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf.constants import GGMLQuantizationType as TensorType

from solm.backends.cpu.files.families import MODEL, Place
from solm.backends.cpu.files.fields import shown
from solm.backends.cpu.files.spec import ModelSpec
from solm.backends.cpu.files.tensors import FLOATS, SUPPORTED, Tensor, supported
from solm.core.errors import DamagedFileError, UnsupportedModelError

VECTORS = ("norm", "bias")
"""How our names of tensors end that are vectors of floats."""


class WeightSource(Protocol):
    """A model's description and its tensors."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def identity(self) -> str | None:
        """A digest that other files do not have; None for weights that are not in files."""

    @property
    def times(self) -> list[int]:
        """When its files were changed last, in nanoseconds."""

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """The tensor `name` (see `solm.backends.cpu.files.families`) of a layer, or with None of the model. The head
        of a model with a tied head is its embedding."""

    def release(self, tensor: Tensor) -> None:
        """Let go of the memory that reading `tensor` took, where it is mapped from a file."""


Listed = Mapping[str, tuple[TensorType, tuple[int, ...]]]
"""Types and shapes of a source's tensors by the names that it has them under."""


def check_tensors(spec: ModelSpec, listed: Listed, gguf: bool, ignored: Iterable[str] = ()) -> None:
    """Check that a source has the tensors that `spec` asks for, in their shapes and in supported types, and no others.

    gguf: which of the two names counts. ignored: names that may be there as well. Raises `DamagedFileError` with file
    and tensor; `UnsupportedModelError` for a tensor that the family does not have.
    """
    left = set(listed) - set(ignored)
    for layer in (None, *range(spec.layers)):
        for ours, place in spec.places(layer).items():
            name = place.gguf if gguf else place.transformers
            if name not in listed:
                raise _damaged(spec.file, name, "it is missing")
            kind, shape = listed[name]
            left.discard(name)
            wanted = _whole_shape(spec, ours, place)
            if shape != wanted:
                raise _damaged(spec.file, name, f"its shape is {list(shape)}, not {list(wanted)}")
            allowed = FLOATS if ours.endswith(VECTORS) else SUPPORTED
            if kind not in allowed:
                known = ", ".join(some.name for some in FLOATS) if allowed is FLOATS else supported()
                raise _damaged(spec.file, name, f"type {kind.name} is not among {known}")
    if left:
        raise UnsupportedModelError(f"{spec.file}: tensor {shown(min(left))} is not known in family {spec.family}")


def ignored_of(spec: ModelSpec, listed: Iterable[str]) -> set[str]:
    """Tensors that a transformers model may have beside its weights: a tied head's copy, and frequencies."""
    copies = {MODEL["head"].transformers} if spec.tied_head else set()
    return copies | {name for name in listed if name.endswith("rotary_emb.inv_freq")}


def _damaged(file: Path | str, name: str, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{file} is damaged: {name}: {reason}")


def name_in(spec: ModelSpec, name: str, layer: int | None, gguf: bool) -> str:
    """What a source calls the tensor `name`, or the one that has it among its rows."""
    place = _place(spec, name, layer)
    return place.gguf if gguf else place.transformers


def meant(spec: ModelSpec, name: str, layer: int | None, stored: Tensor, gguf: bool) -> Tensor:
    """The tensor `name` of the one that a source has stored: its rows of a fused one, and norms with what transformers
    adds to them."""
    fused = _place(spec, name, layer).fused
    if fused:
        first = sum(spec.shape(other)[0] for other in fused[: fused.index(name)])
        return stored.rows(first, spec.shape(name)[0])
    offset = 0.0 if gguf else spec.description.norm_offset
    if not offset or not name.endswith("norm"):
        return stored
    values = stored.floats() + np.float32(offset)
    return Tensor(stored.name, TensorType.F32, stored.shape, values.view(np.uint8))


def _place(spec: ModelSpec, name: str, layer: int | None) -> Place:
    return spec.places(layer)["embedding" if name == "head" and spec.tied_head else name]


def _whole_shape(spec: ModelSpec, name: str, place: Place) -> tuple[int, ...]:
    """The shape of the tensor that has `name`, alone or among others."""
    rows = sum(spec.shape(other)[0] for other in place.fused or (name,))
    return (rows, *spec.shape(name)[1:])
