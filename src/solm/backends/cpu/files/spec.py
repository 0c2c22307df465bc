"""What a model is, apart from its weights: sizes, positions, norms and the tensors that it consists of."""

from dataclasses import dataclass
from pathlib import Path

from solm.backends.cpu.files.families import FAMILIES, GGUF_LAYER, MODEL, TRANSFORMERS_LAYER, Family, Place
from solm.backends.cpu.files.rope import Rope
from solm.core.errors import DamagedFileError

MOST_LAYERS, MOST_HEADS, MOST_WIDTH, MOST_TOKENS = 1 << 12, 1 << 12, 1 << 20, 1 << 24
"""What sizes may be: beyond every model, and small enough to compute with."""


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model's description, the same from a GGUF file, a folder and a loaded model.

    hidden, intermediate, head_dim: numbers of channels. context: positions that the model has. sliding_window: tokens
    that sliding_layers see; None without any. eos: tokens that end a text. file: what messages name. Raises
    `DamagedFileError` where heads cannot share those of keys and values.
    """

    file: Path | str
    family: str
    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    epsilon: float
    rope: Rope
    qkv_bias: bool
    tied_head: bool
    layers_without_rope: tuple[int, ...]
    sliding_window: int | None
    sliding_layers: tuple[int, ...]
    bos: int | None
    eos: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            reason = f"{self.heads} heads cannot share {self.kv_heads} of keys and values"
            raise DamagedFileError(f"{self.file} is damaged: {reason}")

    @property
    def description(self) -> Family:
        return FAMILIES[self.family]

    @property
    def norms_after(self) -> bool:
        """Whether the outputs of attention and MLP are normed, not their inputs."""
        return "attention_norm" not in self.description.names(self)

    @property
    def whole_norms(self) -> bool:
        """Whether queries and keys are normed over all heads together."""
        return self.description.qk_norms == "whole"

    def places(self, layer: int | None) -> dict[str, Place]:
        """Our names of the tensors of a layer, or with None of those outside the layers, and what files call them."""
        if layer is None:
            return {name: place for name, place in MODEL.items() if name != "head" or not self.tied_head}
        gguf, transformers = GGUF_LAYER.format(layer), TRANSFORMERS_LAYER.format(layer)
        found = self.description.names(self)
        return {name: Place(gguf + place.gguf, transformers + place.transformers) for name, place in found.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor by our name: [outputs, inputs] of a matrix, [channels] of a norm or bias."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, self.hidden), "head": (self.vocabulary, self.hidden),
            "q": (queries, self.hidden), "k": (keys, self.hidden), "v": (keys, self.hidden),
            "out": (self.hidden, queries), "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden), "down": (self.hidden, self.intermediate),
            "q_norm": (queries if self.whole_norms else self.head_dim,),
            "k_norm": (keys if self.whole_norms else self.head_dim,),
            "q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,),
        }  # fmt: skip
        return shapes.get(name, (self.hidden,))
