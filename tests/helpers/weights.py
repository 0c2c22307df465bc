"""Weights as GGUF files have them: random blocks of every type, and models whose matrices consist of them."""

import math

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as TensorType
from gguf.quants import dequantize

from solm.backends.cpu.files.sources import QUANTISED, LoadedModel, Tensor

# Outputs in 64s and inputs in 32s, with a last 64 outside of the 128s.
GRID_SIZES = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
# Of q, k, v, out, gate, up and down.
MIXED = (
    TensorType.Q4_1, TensorType.Q4_1, TensorType.Q8_0, TensorType.Q5_0, TensorType.Q4_0, TensorType.Q4_0,
    TensorType.Q5_1,
)  # fmt: skip
# Where in a block a float16 is, and what weights deviate by where it is 1.
_SCALED = {
    TensorType.Q2_K: {80: 10, 82: 7}, TensorType.Q3_K: {108: 42}, TensorType.IQ4_NL: {0: 70},
    TensorType.IQ4_XS: {0: 1260}, TensorType.MXFP4: {},
}  # fmt: skip
# Whole blocks of K-quants, too.
K_SIZES = {
    "hidden_size": 256, "head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512,
}  # fmt: skip


def random_blocks(kind: TensorType, outputs: int, inputs: int, seed: int = 0, deviation: float = 0.1) -> np.ndarray:
    """Blocks of a quantised type, uint8 [outputs, bytes of a row], whose weights have about that deviation."""
    values, size = GGML_QUANT_SIZES[kind]
    draw, numbers = np.random.default_rng(seed), QUANTISED[kind]
    blocks = draw.integers(0, 256, (outputs * inputs // values, size), dtype=np.uint8)
    if kind == TensorType.MXFP4:
        blocks[:, 0] = 128 + round(np.log2(deviation / 5))
    if kind in _SCALED:
        for place, usual in _SCALED[kind].items():
            scale = deviation / usual * draw.uniform(0.5, 1.5, len(blocks))
            blocks[:, place : place + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
        return blocks.reshape(outputs, -1)
    scale = deviation / (1 << numbers.bits) * 4 * draw.uniform(0.5, 1.5, len(blocks))
    if kind in (TensorType.Q4_K, TensorType.Q5_K):
        scale /= 32  # steps are multiples of it
    if kind == TensorType.Q6_K:
        scale /= 64
    place = 208 if kind == TensorType.Q6_K else 0
    blocks[:, place : place + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
    if numbers.centre < 0:
        middle = scale * (1 << numbers.bits - 1)
        lowest = -middle if values == 32 else middle
        blocks[:, 2:4] = lowest.astype(np.float16)[:, None].view(np.uint8)
    return blocks.reshape(outputs, -1)


class QuantisedModel(LoadedModel):
    """A model whose matrices are random blocks of `kinds`, tensor by tensor in turn. The model's own weights become
    what the blocks mean."""

    def __init__(self, model, *kinds: TensorType, embedding: TensorType | None = None):
        super().__init__(model)
        self._blocks = {}
        names = [name for layer in range(self.spec.layers) for name in self._matrices(layer)]
        for number, name in enumerate(names):
            self._become(name, kinds[number % len(kinds)], number)
        if embedding is not None:
            self._become("model.embed_tokens.weight", embedding, 99)
            self._become("lm_head.weight", embedding, 100)

    def _matrices(self, layer: int) -> list[str]:
        places = self.spec.places(layer)
        names = [places[name].transformers for name in ("q", "k", "v", "out", "gate", "up", "down")]
        return list(dict.fromkeys(names))

    def _become(self, name: str, kind: TensorType, seed: int) -> None:
        if name not in self._parameters:
            return
        weight = self._parameters[name]
        blocks = random_blocks(kind, math.prod(weight.shape[:-1]), weight.shape[-1], seed=seed)
        weight.copy_(torch.from_numpy(dequantize(blocks, kind)).reshape(weight.shape))
        self._blocks[name] = kind, blocks

    def _stored(self, name: str) -> Tensor:
        if name not in self._blocks:
            return super()._stored(name)
        kind, blocks = self._blocks[name]
        return Tensor(name, kind, tuple(self._parameters[name].shape), blocks.reshape(-1))
