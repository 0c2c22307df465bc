"""Predicting how much this token suffers from every axis."""

from functools import cached_property

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from solm.actions import FULL_BITS, ActionSpace
from solm.errors import PolicyMismatchError
from solm.native.decider import Decider
from solm.policies.prices import FALLING, Allocator, Gains, price_curves

_SOFTPLUS_ONE = 0.5413  # softplus of it is 1


class ValueConfig(BaseModel):
    """Sizes of a value network: it reads the residual stream that enters `layer` and predicts gains on `grid`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden: int = Field(ge=1)
    layer: int = Field(ge=0)
    grid: ActionSpace
    width: int = Field(64, ge=8, le=4096)
    calibration: int = Field(2048, ge=1)
    """Tokens whose sensitivities are kept, to know what price meets which budget."""


class ValueNetwork(nn.Module):
    """Residual stream of the current token to how sensitive it is to each axis, with one hidden layer.

    The gain of a level is its axis's sensitivity times what the level costs on average, `profile_*` (nats, at most 0,
    and 0 for the dense level); the gain of an action is the sum over its axes. One number per axis keeps the order and
    the convexity of the levels, which a prediction per level would lose in its noise: a network that has learned
    nothing allocates as the static schedule does. `scale` [3] makes sensitivities 1 on average, `trust` [3] draws them
    towards 1 per axis, and `calibration` [M, 3] are sensitivities on training text.
    """

    def __init__(self, config: ValueConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.sizes = [size - 1 for size in config.grid.shape]
        self.read = nn.Linear(config.base_hidden + 3, config.width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.width, 3)
        self.profiles = nn.ParameterList(-torch.linspace(0.5, 0.1, size) for size in self.sizes)
        self.calibration: torch.Tensor
        self.register_buffer("calibration", torch.ones(config.calibration, 3, dtype=torch.float16))
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(3))
        self.trust: torch.Tensor
        self.register_buffer("trust", torch.ones(3))
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _SOFTPLUS_ONE)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Sensitivities [..., 3], 1 on average, from hidden [..., H] and the shares that the layers before spend,
        before [..., 3]."""
        dtype = self.read.weight.dtype
        normed = F.layer_norm(hidden.to(dtype), hidden.shape[-1:])
        x = self.read(torch.cat([normed, before.to(normed)], -1))
        sensitivity = F.softplus(self.head(self.dropout(F.gelu(x)))) / self.scale
        return 1 + self.trust * (sensitivity - 1)

    def split(self, sensitivity: torch.Tensor) -> Gains:
        """Gains per axis [..., levels] of sensitivities [..., 3]."""
        attention, mlp, bits = (
            sensitivity[..., axis, None] * F.pad(profile, (0, 1)) for axis, profile in enumerate(self.profiles)
        )
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
        with torch.no_grad():
            known = self.on_space(network.split(network.calibration.float().cpu()))
        super().__init__(space, network.config.layer, price_curves(space, known), clamp)

    def on_space(self, gains: Gains) -> Gains:
        """Gains [..., levels of the network's grid] for the levels of the policy's space."""
        attention, mlp, bits = (gain @ weights.T.to(gain) for gain, weights in zip(gains, self._weights, strict=True))
        return attention, mlp, bits

    @torch.no_grad()
    def sensitivities(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """How much tokens suffer per axis [..., 3], 1 on average in training; arguments as for `gains`."""
        hidden = hidden.to(self.network.read.weight.device)
        shares = before.clone()
        shares[..., 2] /= FULL_BITS
        return self.network(hidden, shares.to(hidden.device))

    @torch.no_grad()
    def gains(self, hidden: torch.Tensor, before: torch.Tensor) -> Gains:
        sensitivity = self.sensitivities(hidden, before)
        attention, mlp, bits = (gain.float().cpu() for gain in self.network.split(sensitivity))
        return self.on_space((attention, mlp, bits))

    @cached_property
    def compiled(self) -> Decider:
        """The same decisions in the engine's terms."""
        network, space = self.network, self.space
        with torch.no_grad():
            gains = self.on_space(network.split(torch.ones(3)))
        return Decider(
            layer=self.layer,
            read=(network.read.weight, network.read.bias),
            head=(network.head.weight, network.head.bias),
            scale=network.scale,
            trust=network.trust,
            levels=[np.array(levels, dtype=np.float64) for levels in (space.attention, space.mlp, space.bits)],
            gains=[gain.double().numpy() for gain in gains],
            curves=[curve.rising for curve in self.curves],
            prices=FALLING,
            clamp=self.clamp,
        )
