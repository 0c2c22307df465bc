"""The value policy: a small network predicts how sensitive the current token is to each axis."""

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.nn import functional as F

from solm.core.actions import AXES, FULL_BITS, ActionSpace
from solm.core.errors import PolicyMismatchError
from solm.policies.priced import LevelCosts, PricedPolicy, price_curves

_SOFTPLUS_ONE = 0.5413  # softplus of it is 1
_LEAST_COST = 1e-9  # nats; the logarithm of a level cost needs a positive one


class ValueConfig(BaseModel):
    """Sizes of a value network: it reads the residual stream that enters `layer` and knows level costs on `grid`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden: int = Field(ge=1)
    layer: int = Field(ge=0)
    grid: ActionSpace
    width: int = Field(64, ge=8, le=4096)
    kept_sensitivities: int = Field(2048, ge=1, le=65536)
    """Training tokens whose sensitivities are kept; they tell which price gives which average share."""
    attention_own: tuple[float, ...] = ()
    """Per attention level of the grid but the dense one, the part of its level cost that the step itself bears and that
    is multiplied with the token's sensitivity. Later steps, which read this step's keys and values, bear the rest.
    Empty: all of it."""

    @model_validator(mode="after")
    def _check_own(self) -> "ValueConfig":
        levels = len(self.grid.attention) - 1
        if self.attention_own and len(self.attention_own) != levels:
            raise ValueError(f"attention_own needs {levels} parts, one per level below the dense one")
        if any(not 0 <= part <= 1 for part in self.attention_own):
            raise ValueError(f"attention_own must lie between 0 and 1, got {self.attention_own}")
        return self


class ValueNetwork(nn.Module):
    """Residual stream of the current token to its sensitivity per axis, with one hidden layer.

    The cost of a level is the axis's sensitivity times the level's average cost; on attention only the own part of that
    average is multiplied. The cost of an action is the sum over its axes. With one number per axis the costs of its
    levels stay ordered and convex, which a prediction per level would lose in its noise, and a network that has learned
    nothing allocates as the static schedule does.

    level_costs: per axis [levels - 1] average costs of the levels of the grid below the dense one, nats, at least 0.
    scale: [3] divides sensitivities so that they are 1 on average. trust: [3] in [0, 1] shrinks them towards 1.
    training_sensitivities: [M, 3] float16 sensitivities of training tokens.
    """

    def __init__(self, config: ValueConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.read = nn.Linear(config.base_hidden + 3, config.width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.width, 3)
        self.level_costs = nn.ParameterList(torch.linspace(0.5, 0.1, size - 1) for size in config.grid.shape)
        self.training_sensitivities: torch.Tensor
        kept = torch.ones(config.kept_sensitivities, 3, dtype=torch.float16)
        self.register_buffer("training_sensitivities", kept)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(3))
        self.trust: torch.Tensor
        self.register_buffer("trust", torch.ones(3))
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _SOFTPLUS_ONE)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Sensitivities [..., 3], 1 on average, from hidden [..., H] and the shares (attention, MLP, bits/16) of the
        layers before, before [..., 3]."""
        dtype = self.read.weight.dtype
        normed = F.layer_norm(hidden.to(dtype), hidden.shape[-1:])
        x = self.read(torch.cat([normed, before.to(normed)], -1))
        sensitivity = F.softplus(self.head(self.dropout(F.gelu(x)))) / self.scale
        return 1 + self.trust * (sensitivity - 1)

    def check(self) -> None:
        """Raises `PolicyMismatchError` for values that no fit gives: level costs below 0, a scale of at most 0, or a
        trust outside [0, 1]."""
        bounds = [
            *((f"level_costs.{axis}", costs.detach(), 0.0, np.inf) for axis, costs in enumerate(self.level_costs)),
            ("scale", self.scale, np.nextafter(0, 1, dtype=np.float32), np.inf),
            ("trust", self.trust, 0.0, 1.0),
            ("training_sensitivities", self.training_sensitivities, 0.0, np.inf),
        ]
        for name, values, low, high in bounds:
            outside = values[(values < low) | (values > high)]
            if len(outside):
                above = "above 0" if name == "scale" else f"at least {low:g}"
                limit = above if high == np.inf else f"in [{low:g}, {high:g}]"
                raise PolicyMismatchError(f"{name} of the policy holds {float(outside[0]):g}; it must be {limit}")


def known_levels(grid: ActionSpace, space: ActionSpace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per axis the levels of `grid` and of `space` as shares, float64.

    Raises `PolicyMismatchError` for a level of `space` below those of `grid`.
    """
    found = []
    for name, known, wanted in zip(
        AXES, (grid.attention, grid.mlp, grid.bits), (space.attention, space.mlp, space.bits), strict=True
    ):
        full = FULL_BITS if name == "bits" else 1
        if wanted[0] < known[0] - 1e-9:
            raise PolicyMismatchError(
                f"{name} level {wanted[0]:g} is below what this policy was trained on, {known[0]:g} to {known[-1]:g}"
            )
        found.append((np.array(known, dtype=np.float64) / full, np.array(wanted, dtype=np.float64) / full))
    return found


def costs_between(known: np.ndarray, costs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Level costs [W] float64, nats, of levels `wanted` [W], from the `costs` [K - 1] of levels `known` [K], the dense
    one, which costs nothing, last. Levels are shares.

    Between known levels the cost falls exponentially with the share, and from the last but one to the dense level with
    the square of what is left out. Both are convex, as measured costs are. With straight lines no level between two
    known ones would ever be the cheapest.
    """
    if len(known) == 1:
        return np.zeros(len(wanted))
    costs = np.maximum(costs.astype(np.float64), _LEAST_COST)
    between = np.exp(np.interp(wanted, known[:-1], np.log(costs)))
    above = costs[-1] * ((1 - wanted) / (1 - known[-2])) ** 2
    return np.where(wanted > known[-2], above, between)


class ValuePolicy(PricedPolicy):
    """Buys by the level costs that a value network predicts, in an action space within the network's grid.

    own_cost: per axis [levels] float64, the part of a level's cost that is multiplied with the token's sensitivity;
    fixed_cost: the part that is not. Raises `PolicyMismatchError` where the space has levels below the grid's.
    """

    def __init__(self, network: ValueNetwork, space: ActionSpace, clamp: bool = True):
        self.network = network
        own, fixed = [], []
        parts = (network.config.attention_own, (), ())
        for (known, wanted), costs, part in zip(
            known_levels(network.config.grid, space), network.level_costs, parts, strict=True
        ):
            cost = costs_between(known, costs.detach().cpu().numpy(), wanted)
            borne = cost * (np.interp(wanted, known[:-1], part) if part else 1.0)
            own.append(torch.from_numpy(borne))
            fixed.append(torch.from_numpy(cost - borne))
        self.own_cost, self.fixed_cost = LevelCosts(*own), LevelCosts(*fixed)
        super().__init__(space, network.config.layer, price_curves(space, self.training_costs), clamp)

    @property
    def training_costs(self) -> LevelCosts:
        return self.level_costs(self.network.training_sensitivities)

    def level_costs(self, sensitivities: torch.Tensor) -> LevelCosts:
        """Level costs [..., levels] float64 on the host, of tokens of sensitivities [..., 3]."""
        sensitivities = sensitivities.detach().double().cpu()
        return LevelCosts(
            *(
                fixed + sensitivities[..., axis, None] * own
                for axis, (own, fixed) in enumerate(zip(self.own_cost, self.fixed_cost, strict=True))
            )
        )

    @torch.no_grad()
    def sensitivities(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Predicted sensitivities [N, Q, 3], 1 on average in training; arguments as for `costs`."""
        hidden = hidden.to(self.network.read.weight.device)
        shares = before.clone()
        shares[..., 2] /= FULL_BITS
        return self.network(hidden, shares.to(hidden.device))

    @torch.no_grad()
    def costs(self, hidden: torch.Tensor, before: torch.Tensor) -> LevelCosts:
        return self.level_costs(self.sensitivities(hidden, before))
