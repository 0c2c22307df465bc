"""Predicting how much this token suffers from every axis."""

from functools import cached_property

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.nn import functional as F

from solm.backends.cpu.decider import Decider
from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.errors import PolicyMismatchError
from solm.policies.priced import FALLING, Gains, PricedPolicy, price_curves

_SOFTPLUS_ONE = 0.5413  # softplus of it is 1
_LEAST_COST = 1e-9  # nats; of a level that costs nothing there is no logarithm


class ValueConfig(BaseModel):
    """Sizes of a value network: it reads the residual stream that enters `layer` and predicts gains on `grid`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden: int = Field(ge=1)
    layer: int = Field(ge=0)
    grid: ActionSpace
    width: int = Field(64, ge=8, le=4096)
    calibration: int = Field(2048, ge=1)
    """Tokens whose sensitivities are kept, to know what price meets which budget."""
    attention_own: tuple[float, ...] = ()
    """Per attention level of the grid but the dense one, the part of its cost that the step itself bears, and that so
    follows its sensitivity. The rest falls on later steps, which read its keys and values. Empty: all of it."""

    @model_validator(mode="after")
    def _check_own(self) -> "ValueConfig":
        levels = len(self.grid.attention) - 1
        if self.attention_own and len(self.attention_own) != levels:
            raise ValueError(f"attention_own needs {levels} parts, one per level below the dense one")
        if any(not 0 <= part <= 1 for part in self.attention_own):
            raise ValueError(f"attention_own must lie between 0 and 1, got {self.attention_own}")
        return self


class ValueNetwork(nn.Module):
    """Residual stream of the current token to how sensitive it is to each axis, with one hidden layer.

    The gain of a level is its axis's sensitivity times what the level costs on average, `profile_*` (nats, at most 0,
    and 0 for the dense level), or of attention times the own part of that; the gain of an action is the sum over its
    axes. One number per axis keeps the order and
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


def known_levels(grid: ActionSpace, space: ActionSpace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per axis the levels of `grid` and of `space` as shares, float64.

    Raises `PolicyMismatchError` for a level of `space` below those of `grid`.
    """
    found = []
    for name, known, wanted, full in (
        ("attention", grid.attention, space.attention, 1),
        ("mlp", grid.mlp, space.mlp, 1),
        ("bits", grid.bits, space.bits, FULL_BITS),
    ):
        if wanted[0] < known[0] - 1e-9:
            raise PolicyMismatchError(
                f"{name} level {wanted[0]:g} is below what this policy was trained on, {known[0]:g} to {known[-1]:g}"
            )
        found.append((np.array(known, dtype=np.float64) / full, np.array(wanted, dtype=np.float64) / full))
    return found


def gains_between(known: np.ndarray, gains: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What levels `wanted` gain, of which levels `known` [K], the dense one last, gain `gains` [K - 1] (at most 0).

    From one known level to the next the cost falls exponentially with the share, and to the dense one with the square
    of what is left out: convex, as costs are. On straight lines no level between two known ones would ever be taken.
    """
    costs = np.maximum(-gains.astype(np.float64), _LEAST_COST)
    if len(known) == 1:
        return np.zeros(len(wanted))
    between = np.exp(np.interp(wanted, known[:-1], np.log(costs)))
    above = costs[-1] * ((1 - wanted) / (1 - known[-2])) ** 2
    return -np.where(wanted > known[-2], above, between)


class ValuePolicy(PricedPolicy):
    """Allocates by a value network's predictions."""

    def __init__(self, network: ValueNetwork, space: ActionSpace, clamp: bool = True):
        self.network = network
        own, rest = [], []
        parts = (network.config.attention_own, (), ())
        for (known, wanted), allocation, part in zip(
            known_levels(network.config.grid, space), network.profiles, parts, strict=True
        ):
            gains = gains_between(known, allocation.detach().cpu().numpy(), wanted)
            borne = gains * (np.interp(wanted, known[:-1], part) if part else 1.0)
            own.append(torch.from_numpy(borne))
            rest.append(torch.from_numpy(gains - borne))
        self.own: Gains = own[0], own[1], own[2]
        """Per axis what every level of the space gains a token of sensitivity 1 itself: [levels] float64."""
        self.rest: Gains = rest[0], rest[1], rest[2]
        """... and what it gains whatever the token's sensitivity."""
        super().__init__(space, network.config.layer, price_curves(space, self.priced(network.calibration)), clamp)

    def priced(self, sensitivity: torch.Tensor) -> Gains:
        """Gains per axis [..., levels] float64 of tokens of sensitivities [..., 3]."""
        sensitivity = sensitivity.detach().double().cpu()
        attention, mlp, bits = (
            rest + sensitivity[..., axis, None] * own
            for axis, (own, rest) in enumerate(zip(self.own, self.rest, strict=True))
        )
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
        return self.priced(self.sensitivities(hidden, before))

    @cached_property
    def compiled(self) -> Decider:
        """The same decisions in the engine's terms."""
        network, space = self.network, self.space
        return Decider(
            layer=self.layer,
            read=(network.read.weight, network.read.bias),
            head=(network.head.weight, network.head.bias),
            scale=network.scale,
            trust=network.trust,
            levels=[np.array(levels, dtype=np.float64) for levels in (space.attention, space.mlp, space.bits)],
            own_cost=[gain.numpy() for gain in self.own],
            fixed_cost=[gain.numpy() for gain in self.rest],
            curves=[curve.rising for curve in self.curves],
            prices=FALLING,
            clamp=self.clamp,
        )
