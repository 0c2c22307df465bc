"""What a model is, apart from its weights: sizes, positions, norms and the tensors that it consists of."""

from dataclasses import dataclass
from pathlib import Path

from solm.backends.cpu.files.families import FAMILIES, GGUF_LAYER, MODEL, TRANSFORMERS_LAYER, Activation, Family, Place
from solm.backends.cpu.files.rope import Rope
from solm.core.errors import DamagedFileError

MOST_LAYERS, MOST_HEADS, MOST_WIDTH, MOST_TOKENS = 1 << 12, 1 << 12, 1 << 20, 1 << 24
"""What sizes may be: beyond every model, and small enough to compute with."""


@dataclass(frozen=True)
class Scales:
    """What embeddings, products of queries and keys, the outputs of attention and MLP, and logits are multiplied
    with."""

    embedding: float
    softmax: float
    residual: float
    logits: float


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model's description, the same from a GGUF file, a folder and a loaded model.

    hidden, intermediate, head_dim: numbers of channels. context: positions that the model has. sliding_window: tokens
    that sliding_layers see, the last of them their own; None without any. rope, sliding_rope: the rotary positions of
    other layers and of those. eos: tokens that end a text. file: what messages name. Raises `DamagedFileError` where
    heads cannot share those of keys and values.
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
    activation: Activation
    scales: Scales
    rope: Rope
    sliding_rope: Rope
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
    def whole_norms(self) -> bool:
        """Whether queries and keys are normed over all heads together."""
        return self.description.qk_norms == "whole"

    def places(self, layer: int | None) -> dict[str, Place]:
        """Our names of the tensors of a layer, or with None of those outside the layers, and what files call them."""
        if layer is None:
            return {name: place for name, place in MODEL.items() if name != "head" or not self.tied_head}
        gguf, transformers = GGUF_LAYER.format(layer), TRANSFORMERS_LAYER.format(layer)
        found = self.description.names(self)
        return {
            name: Place(gguf + place.gguf, transformers + place.transformers, place.fused)
            for name, place in found.items()
        }

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary positions of a layer; None where it has none."""
        if layer in self.layers_without_rope:
            return None
        return self.sliding_rope if layer in self.sliding_layers else self.rope

    def window_of(self, layer: int) -> int | None:
        """The number of tokens that a layer sees at most; None for all."""
        return self.sliding_window if layer in self.sliding_layers else None

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
