"""What an action costs, as a share of the dense step: `nominal`, `bytes` and `flops`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig

if TYPE_CHECKING:
    import torch

CostModel = Literal["nominal", "bytes", "flops"]
_LOW_PART = 2 / 3  # of nested weights' bytes, for a share of 1 left out: at a share of 4 / 16 half of them are left
Number = TypeVar("Number", float, "torch.Tensor")


class ModelShapes(BaseModel):
    """The sizes of a base model that its cost depends on; weights counted per layer, in elements.

    weight_bits, head_bits, cache_bits, bound_bits: what a number of the layers' weights, of the output head, of keys
    and values, and of the bounds of a page's keys takes in memory, with its share of scales. Only `bytes` depends on
    them, and only on their ratios. A model that is not loaded yet has the defaults, right where all have one dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool
    weight_bits: float = Field(16, exclude=True)
    head_bits: float = Field(16, exclude=True)
    cache_bits: float = Field(16, exclude=True)
    bound_bits: float = Field(16, exclude=True)

    @property
    def attention_weights(self) -> int:
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def up_weights(self) -> int:
        """Weights that consume the MLP's input (gate and up)."""
        return self.hidden * self.intermediate * (2 if self.gated else 1)

    @property
    def down_weights(self) -> int:
        return self.hidden * self.intermediate

    @property
    def layer_weights(self) -> int:
        return self.attention_weights + self.up_weights + self.down_weights

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


def mlp_share(keep: Number, shapes: ModelShapes, sparsity: SparsityConfig) -> Number:
    """Share of the MLP's weights read at a realised share of channels `keep` (any shape).

    Dropped input channels skip columns of gate and up, dropped hidden channels skip rows of down. Of an allocation only
    the mean is known here. It is a few thousandths off where hidden channels keep the square of a share. Where they
    or attention's projections have curves of their own it is taken to be the share itself, which is exact where the
    parts of `SparsityConfig` count weights.
    """
    up, down, part = shapes.up_weights, shapes.down_weights, sparsity.input_part
    if sparsity.projection_part or (sparsity.allocation is not None and sparsity.allocation.hidden is not None):
        return keep
    if sparsity.hidden_power == 2:
        # Of keep = part * inputs + (1 - part) * inputs².
        inputs = ((part**2 + 4 * (1 - part) * keep) ** 0.5 - part) / (2 * (1 - part))
        return (up * inputs + down * inputs**2) / (up + down)
    return (up * keep + down * (keep if sparsity.mlp_site == "input+hidden" else 1)) / (up + down)


def relative_cost(
    realised: "torch.Tensor",
    kv_length: "torch.Tensor | int",
    shapes: ModelShapes,
    sparsity: SparsityConfig,
    model: CostModel = "nominal",
    policy_parameters: int = 0,
) -> "torch.Tensor":
    """Cost of a decode step of one row as a share of the dense step.

    Args:
        realised: [..., 3] shares (κ, ρ, b/16).
        kv_length: keys visible to the step, broadcastable to [...].
        model: ``nominal`` is the mean of the shares; ``bytes`` what is read from memory at batch 1 (weights, KV,
            bounds of pages), in the bits of `shapes`; ``flops`` the multiply-adds. Activation bits change neither bytes
            nor flops, as they change nothing that is stored: only `nominal` counts them. Weight bits change bytes: the
            high halves alone are half of a nested weight.
        policy_parameters: weights of the policy that controls the step, charged to it but not to the dense step, with
            the bits of the layers' weights.

    Returns:
        [...] float64; above 1 is possible where the policy costs more than it saves.
    """
    import torch

    attention, mlp, bits = realised.to(torch.float64).unbind(-1)
    length = torch.as_tensor(kv_length, dtype=torch.float64)
    return _relative(attention, mlp, bits, length, shapes, sparsity, model, policy_parameters)


def step_cost(
    realised: Sequence[float],
    kv_length: int,
    shapes: ModelShapes,
    sparsity: SparsityConfig,
    model: CostModel = "nominal",
    policy_parameters: int = 0,
) -> float:
    """The same of a single step, realised [3]: in plain numbers, a thirtieth of the time where every token wants it."""
    attention, mlp, bits = realised
    return _relative(attention, mlp, bits, float(kv_length), shapes, sparsity, model, policy_parameters)


def _relative(
    attention: Number,
    mlp: Number,
    bits: Number,
    length: Number,
    shapes: ModelShapes,
    sparsity: SparsityConfig,
    model: CostModel,
    policy_parameters: int,
) -> Number:
    if model == "nominal":
        return (attention + mlp + bits) / 3
    if model not in ("bytes", "flops"):
        raise SolmError(f"unknown cost model {model!r}; choose nominal, bytes or flops")
    # A weight and a cached number are a multiply-add each; a key is read once for all of its queries.
    heads = shapes.kv_heads if model == "bytes" else shapes.heads
    projections = shapes.attention_weights * (mlp if sparsity.projection_part else 1)
    weights = projections + (shapes.up_weights + shapes.down_weights) * mlp_share(mlp, shapes, sparsity)
    cached = heads * 2 * length * shapes.head_dim
    if sparsity.bits_site == "weights" and model == "bytes":
        weights -= (weights - projections) * (1 - bits) * _LOW_PART
    weight, head, number, bound = 1.0, 1.0, 1.0, 1.0
    if model == "bytes":
        weight, head, number, bound = shapes.weight_bits, shapes.head_bits, shapes.cache_bits, shapes.bound_bits
    bounds = cached / sparsity.page_size * (attention < 1)
    step = shapes.layers * (weights * weight + cached * attention * number + bounds * bound)
    dense = shapes.layers * (shapes.layer_weights * weight + cached * number)
    always = shapes.head_weights * head
    return (step + always + policy_parameters * weight) / (dense + always)
