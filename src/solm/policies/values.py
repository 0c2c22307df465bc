"""Predicting what every level of every axis costs this token."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from solm.actions import FULL_BITS, ActionSpace
from solm.errors import PolicyMismatchError
from solm.policies.prices import Allocator, Gains, price_curves


class ValueConfig(BaseModel):
    """Sizes of a value network: it reads the residual stream that enters `layer` and predicts gains on `grid`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden: int = Field(ge=1)
    layer: int = Field(ge=0)
    grid: ActionSpace
    width: int = Field(64, ge=8, le=4096)
    calibration: int = Field(2048, ge=1)
    """Tokens whose predicted gains are kept, to know what price meets which budget."""


class ValueNetwork(nn.Module):
    """Residual stream of the current token to the gain of every level of every axis, with one hidden layer.

    The gain of an action is the sum of its levels' gains and of a constant for every pair of levels of two axes. The
    dense level's gain is zero by definition. `calibration` [M, levels] are predictions on training text.
    """

    def __init__(self, config: ValueConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.sizes = [size - 1 for size in config.grid.shape]
        self.read = nn.Linear(config.base_hidden + 3, config.width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.width, sum(self.sizes))
        self.pairs = nn.ParameterList(torch.zeros(self.sizes[a], self.sizes[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
        self.calibration: torch.Tensor
        self.register_buffer("calibration", torch.zeros(config.calibration, sum(self.sizes), dtype=torch.float16))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Gains [..., levels of all axes but the dense ones] from hidden [..., H] and the shares that the layers
        before spend, before [..., 3]."""
        dtype = self.read.weight.dtype
        normed = F.layer_norm(hidden.to(dtype), hidden.shape[-1:])
        x = self.read(torch.cat([normed, before.to(normed)], -1))
        return self.head(self.dropout(F.gelu(x)))

    def split(self, flat: torch.Tensor) -> Gains:
        """Per axis [..., levels], the dense level's zero included."""
        attention, mlp, bits = (F.pad(part, (0, 1)) for part in flat.split(self.sizes, -1))
        return attention, mlp, bits


def interpolation(grid: ActionSpace, space: ActionSpace) -> Gains:
    """Per axis the weights [levels of space, levels of grid] that express a level of `space` in those of `grid`.

    Raises `PolicyMismatchError` for a level outside of the grid.
    """
    found = []
    for name, known, wanted in (
        ("attention", grid.attention, space.attention),
        ("mlp", grid.mlp, space.mlp),
        ("bits", grid.bits, space.bits),
    ):
        levels, points = torch.tensor(known, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
        if points[0] < levels[0] - 1e-9:
            raise PolicyMismatchError(
                f"{name} level {wanted[0]:g} is below what this policy was trained on, {known[0]:g} to {known[-1]:g}"
            )
        upper = torch.searchsorted(levels, points - 1e-9).clamp(min=min(1, len(known) - 1))
        lower = (upper - 1).clamp(min=0)
        width = levels[upper] - levels[lower]
        part = torch.where(width > 0, (points - levels[lower]) / width.clamp(min=1e-12), 1.0)
        weights = torch.zeros(len(wanted), len(known), dtype=torch.float64)
        weights[torch.arange(len(wanted)), lower] = 1 - part
        weights[torch.arange(len(wanted)), upper] += part
        found.append(weights)
    return found[0], found[1], found[2]


class ValuePolicy(Allocator):
    """Allocates by a value network's predictions."""

    def __init__(self, network: ValueNetwork, space: ActionSpace, clamp: bool = True):
        self.network, self._weights = network, interpolation(network.config.grid, space)
        attention, mlp, bits = self._weights
        first, second, third = (F.pad(pair.detach().double().cpu(), (0, 1, 0, 1)) for pair in network.pairs)
        pairs = (attention @ first @ mlp.T, attention @ second @ bits.T, mlp @ third @ bits.T)
        known = self._on_space(network.split(network.calibration.double().cpu()))
        super().__init__(space, network.config.layer, price_curves(space, known), pairs, clamp)

    def _on_space(self, gains: Gains) -> Gains:
        attention, mlp, bits = (gain @ weights.T.to(gain) for gain, weights in zip(gains, self._weights, strict=True))
        return attention, mlp, bits

    @torch.no_grad()
    def gains(self, hidden: torch.Tensor, before: torch.Tensor) -> Gains:
        shares = before.clone()
        shares[..., 2] /= FULL_BITS
        return self._on_space(self.network.split(self.network(hidden, shares.to(hidden.device)).float().cpu()))
