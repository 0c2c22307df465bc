"""The value policy: a small network predicts how sensitive the current token is to each axis."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from solm.core.actions import AXES, FULL_BITS, WHOLE, ActionSpace
from solm.core.arrays import as_numpy
from solm.core.budget import Budget
from solm.core.errors import PolicyMismatchError
from solm.policies.priced import (
    SAME_COSTS,
    LevelCosts,
    PriceCurve,
    equal_prices,
    feasible_levels,
    nominal_share,
    without_bias,
)
from solm.policies.schedules import SHORTEST_HORIZON, Count, due_share
from solm.policies.value_weights import ValueConfig as ValueConfig
from solm.policies.value_weights import ValueWeights

if TYPE_CHECKING:
    import torch

    from solm.policies.value_network import ValueNetwork

_KEPT_CURVES = 64
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


class ValuePolicy:
    """Takes for every token the action of the lowest level costs plus price, by the level costs that a value network
    predicts, in an action space within the network's grid.

    It decides in the middle of a pass, before layer `layer`. The layers before it follow the static schedule of the
    same budget, so that nothing the policy reads depends on its own earlier decisions: known tokens are decided in one
    pass.

    Actions after which the budget could no longer be met are ruled out.

    curves: per axis the average share that every price gives. own_cost: per axis [levels] float64, the part of a
    level's cost that is multiplied with the token's sensitivity; fixed_cost: the part that is not. Raises
    `PolicyMismatchError` where the space has levels below the grid's.
    """

    reads_model = True

    def __init__(self, network: "ValueNetwork | ValueWeights", space: ActionSpace):
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
        self.own_cost, self.fixed_cost = tuple(own), tuple(fixed)
        self.space, self.layer = space, config.layer
        self.training_costs = self.level_costs(self.weights.arrays["training_sensitivities"])
        """Level costs [M, levels] of tokens seen in training."""
        self.curves = [PriceCurve(cost, shares) for cost, shares in zip(self.training_costs, space.shares, strict=True)]
        self._realised_curve = lru_cache(_KEPT_CURVES)(self._curve)

    @property
    def size(self) -> int:
        """Fitted numbers that are read at every step."""
        return self.weights.size

    def split(
        self, cost: float, rates: np.ndarray, levels: tuple[np.ndarray, ...], context: int | None = None
    ) -> Budget:
        """As `solm.core.budget.Split`."""
        curves = [self._realised_curve(axis, shares.tobytes()) for axis, shares in enumerate(levels)]
        factors = SAME_COSTS if context is None else self.weights.config.cost_factors(context)
        return equal_prices(curves, cost, rates, factors)

    def _curve(self, axis: int, shares: bytes) -> PriceCurve:
        """The price curve of one axis at realised shares, float64. A server needs those of the same shares again and
        again, and one takes ten milliseconds."""
        return PriceCurve(self.training_costs[axis], np.frombuffer(shares))

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
        return tuple(fixed + sensitivity * own for sensitivity, own, fixed in own_and_fixed)

    def costs(self, hidden: "torch.Tensor", before: "torch.Tensor") -> LevelCosts:
        """Level costs [N, Q, levels], from the residual stream hidden [N, Q, H] that enters the layer and the numbers
        (attention, MLP, bits) of the layers before it, before [N, Q, 3]."""
        import torch

        with torch.no_grad():
            hidden = hidden.to(self.network.read.weight.device)
            shares = before.clone()
            shares[..., 2] /= FULL_BITS
            return self.level_costs(as_numpy(self.network(hidden, shares.to(hidden.device))))

    def allocate(
        self,
        costs: tuple[np.ndarray, ...],
        levels: tuple[np.ndarray, ...],
        target: np.ndarray,
        spent: np.ndarray,
        expected: np.ndarray,
        counted: np.ndarray,
        remaining: Count,
        later: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The action [N] int64 of one step, at the price that the rest of the budget sets per remaining step, and the
        shares [N, 3] that the price was set for.

        costs, levels: per axis [N, levels], level costs in nats and the shares that the levels would realise. target,
        spent: [N, 3] shares asked for, and the sums of those realised over `counted` [N, 3] steps. expected: [N, 3] the
        sums of those that prices were set for. remaining: steps left, this one included. later: lowest and highest
        average shares [N, 3] that the steps after this one can realise.
        """
        # In NumPy: these are a few numbers a row, and a call of torch takes about ten times as long to start.
        horizon = np.maximum(remaining, SHORTEST_HORIZON)
        action = np.zeros(len(target), dtype=np.int64)
        due = np.stack([realised[:, -1] for realised in levels], 1)
        for axis, (cost, realised, curve) in enumerate(zip(costs, levels, self.curves, strict=True)):
            size = realised.shape[1]
            if size == 1:
                continue
            wanted = due_share(target[:, axis], spent[:, axis], counted[:, axis], horizon)
            wanted = without_bias(wanted, spent[:, axis], expected[:, axis], counted[:, axis])
            due[:, axis] = np.minimum(np.maximum(wanted, realised[:, 0]), realised[:, -1])
            # Prices are those of nominal shares. A step realises other ones: some pages are always read, and pages
            # are read whole.
            price = curve.price(nominal_share(due[:, axis], realised, curve.shares))
            score = cost.astype(np.float64) + price[:, None] * curve.shares
            ends = later[0][:, axis], later[1][:, axis]
            allowed = feasible_levels(realised, target[:, axis], spent[:, axis], counted[:, axis], remaining, ends)
            score = np.where(allowed, score, np.inf)
            # Axes share neither costs nor budgets: the best action has the best level of each.
            action = action * size + score.argmin(1)
        return action, due
