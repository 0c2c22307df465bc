"""What the engine is built from: a GGUF file, a folder of safetensors or a loaded model, behind one protocol."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from gguf.constants import GGMLQuantizationType as TensorType

from solm.backends.cpu.files.families import MODEL
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
    def nbytes(self) -> int:
        """Bytes of all tensors."""

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
            if shape != spec.shape(ours):
                raise _damaged(spec.file, name, f"its shape is {list(shape)}, not {list(spec.shape(ours))}")
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
    """What a source calls the tensor `name`."""
    if name == "head" and spec.tied_head:
        name = "embedding"
    place = spec.places(layer)[name]
    return place.gguf if gguf else place.transformers
