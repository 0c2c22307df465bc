"""The value policy: a small network predicts how sensitive the current token is to each axis."""

from typing import TYPE_CHECKING

import numpy as np

from solm.core.actions import AXES, FULL_BITS, WHOLE, ActionSpace
from solm.core.arrays import as_numpy
from solm.core.errors import PolicyMismatchError
from solm.policies.priced import LevelCosts, PriceCurve, PricedPolicy
from solm.policies.value_weights import ValueConfig as ValueConfig
from solm.policies.value_weights import ValueWeights

if TYPE_CHECKING:
    import torch

    from solm.policies.value_network import ValueNetwork

_LEAST_COST = 1e-9  # nats; the logarithm of a level cost needs a positive one


def known_levels(grid: ActionSpace, space: ActionSpace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per axis the levels of `grid` and of `space` as shares, float64.

    Raises `PolicyMismatchError` for a level of `space` below those of `grid`.
    """
    shares = list(zip(grid.shares, space.shares, strict=True))
    for name, whole, (known, wanted) in zip(AXES, WHOLE, shares, strict=True):
        if wanted[0] < known[0] - 1e-9:
            low, first, last = (share * whole for share in (wanted[0], known[0], known[-1]))
            raise PolicyMismatchError(
                f"{name} level {low:g} is below what this policy was trained on, {first:g} to {last:g}"
            )
    return shares


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

    def __init__(self, network: "ValueNetwork | ValueWeights", space: ActionSpace, clamp: bool = True):
        """network: what predicts, or its weights alone, which is all that the compiled engine needs."""
        self.weights = network if isinstance(network, ValueWeights) else network.weights()
        self._network = None if isinstance(network, ValueWeights) else network
        config, own, fixed = self.weights.config, [], []
        for (known, wanted), costs, part in zip(
            known_levels(config.grid, space), self.weights.level_costs, (config.attention_own, (), ()), strict=True
        ):
            cost = costs_between(known, costs, wanted)
            borne = cost * (np.interp(wanted, known[:-1], part) if part else 1.0)
            own.append(borne)
            fixed.append(cost - borne)
        self.own_cost, self.fixed_cost = LevelCosts(*own), LevelCosts(*fixed)
        curves = [PriceCurve(cost, shares) for cost, shares in zip(self.training_costs, space.shares, strict=True)]
        super().__init__(space, config.layer, curves, clamp)

    @property
    def size(self) -> int:
        """Fitted numbers that are read at every step."""
        return self.weights.size

    @property
    def training_costs(self) -> LevelCosts:
        return self.level_costs(self.weights.arrays["training_sensitivities"])

    def cost_factors(self, context: int) -> tuple[float, float, float]:
        return self.weights.config.cost_factors(context)

    @property
    def network(self) -> "ValueNetwork":
        """What predicts, on the host where it was made from weights alone."""
        if self._network is None:
            from solm.policies.value_network import ValueNetwork

            self._network = ValueNetwork.of(self.weights)
        return self._network

    def level_costs(self, sensitivities: np.ndarray) -> LevelCosts:
        """Level costs [..., levels] float64 of tokens of sensitivities [..., 3]."""
        of_axes = np.moveaxis(sensitivities.astype(np.float64)[..., None], -2, 0)
        own_and_fixed = zip(of_axes, self.own_cost, self.fixed_cost, strict=True)
        return LevelCosts(*(fixed + sensitivity * own for sensitivity, own, fixed in own_and_fixed))

    def sensitivities(self, hidden: "torch.Tensor", before: "torch.Tensor") -> "torch.Tensor":
        """Predicted sensitivities [N, Q, 3], 1 on average in training; arguments as for `costs`."""
        import torch

        with torch.no_grad():
            hidden = hidden.to(self.network.read.weight.device)
            shares = before.clone()
            shares[..., 2] /= FULL_BITS
            return self.network(hidden, shares.to(hidden.device))

    def costs(self, hidden: "torch.Tensor", before: "torch.Tensor") -> LevelCosts:
        return self.level_costs(as_numpy(self.sensitivities(hidden, before)))
