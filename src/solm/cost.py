"""What an action costs, as a share of the dense step: `nominal`, `bytes` and `flops` (METHOD section 3)."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from solm.errors import SolmError
from solm.semantics import Semantics

CostModel = Literal["nominal", "bytes", "flops"]


class ModelShapes(BaseModel):
    """The sizes of a base model that its cost depends on; weights counted per layer, in elements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool
    weight_bytes: int = 2

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
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


def mlp_share(keep: torch.Tensor, shapes: ModelShapes, semantics: Semantics) -> torch.Tensor:
    """Share of the MLP's weights read at a realised MLP share `keep` (any shape), the mean of the sites'.

    Input channels skip columns of gate and up, hidden channels skip rows of down; gate-first reads the whole gate
    and skips rows of up and down.
    """
    up, down = shapes.up_weights, shapes.down_weights
    if semantics.hidden_power == 2:
        inputs = ((1 + 8 * keep).sqrt() - 1) / 2  # of keep = (inputs + inputs²) / 2
        return (up * inputs + down * inputs**2) / (up + down)
    if semantics.mlp_site == "gate-first" and shapes.gated:
        read = up / 2 + (up / 2 + down) * keep
    else:
        read = up * (keep if "input" in semantics.mlp_site else torch.ones_like(keep)) + down * (
            keep if semantics.mlp_site in ("hidden", "input+hidden", "gate-first") else torch.ones_like(keep)
        )
    return read / (up + down)


def relative_cost(
    realised: torch.Tensor,
    kv_length: torch.Tensor | int,
    shapes: ModelShapes,
    semantics: Semantics,
    model: CostModel = "nominal",
    policy_parameters: int = 0,
) -> torch.Tensor:
    """Cost of a decode step of one row as a share of the dense step.

    Args:
        realised: [..., 3] shares (κ, ρ, b/16).
        kv_length: keys visible to the step, broadcastable to [...].
        model: ``nominal`` is the mean of the shares; ``bytes`` what is read from memory at batch 1 (weights, KV,
            page metadata); ``flops`` the multiply-adds. Activation bits change neither bytes nor flops: weights are
            stored at one precision, so only `nominal` counts them.
        policy_parameters: weights of the policy that controls the step, charged to it but not to the dense step.

    Returns:
        [...] float64; above 1 is possible where the policy costs more than it saves.
    """
    attention, mlp, _ = realised.to(torch.float64).unbind(-1)
    if model == "nominal":
        return realised.to(torch.float64).mean(-1)
    length = torch.as_tensor(kv_length, dtype=torch.float64)
    weights = shapes.attention_weights + (shapes.up_weights + shapes.down_weights) * mlp_share(mlp, shapes, semantics)
    dense_weights = shapes.attention_weights + shapes.up_weights + shapes.down_weights
    cached = 2 * length * shapes.head_dim
    metadata = torch.where(attention < 1, cached / semantics.page_size, 0.0)
    if semantics.criterion != "pages":
        metadata = torch.zeros_like(metadata)
    if model == "bytes":
        unit = shapes.weight_bytes
        step = shapes.layers * (weights + shapes.kv_heads * (cached * attention + metadata))
        dense = shapes.layers * (dense_weights + shapes.kv_heads * cached)
    elif model == "flops":
        unit = 2
        step = shapes.layers * (weights + shapes.heads * (cached * attention + metadata))
        dense = shapes.layers * (dense_weights + shapes.heads * cached)
    else:
        raise SolmError(f"unknown cost model {model!r}; choose nominal, bytes or flops")
    return unit * (step + shapes.head_weights + policy_parameters) / (unit * (dense + shapes.head_weights))
