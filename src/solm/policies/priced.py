"""Policies that buy compute at a price: the level of the lowest level cost plus price times share."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solm.core.actions import AXES, ActionSpace
from solm.core.budget import Budget
from solm.policies.schedules import SHORTEST_HORIZON, Count, due_share, take, two_levels

if TYPE_CHECKING:
    import torch

_PRICES = np.concatenate([np.zeros(1), np.logspace(-3, 1.5, 128, dtype=np.float32)]).astype(np.float64)
FALLING_PRICES = np.ascontiguousarray(_PRICES[::-1])
"""[P] float64, nats per share: the prices that belong to the points of `PriceCurve.rising`."""
NET_RATES = (1 / len(AXES),) * len(AXES)
"""What the whole of every axis is worth in net keep, the mean of the shares."""
SAME_COSTS = (1.0,) * len(AXES)
"""Factors of level costs per axis that change nothing."""
UNBIASED_STEPS = 16
"""After so many steps half of the difference between what they realised and what their prices were set for is taken to
last (`without_bias`), and more after more of them."""
_SAME_SHARE = 1e-9
"""Shares that differ by less count as equal."""
_LEAST_RATE = 1e-6
_KEPT_CURVES = 64
_HALVINGS = 64
"""Of the range of prices, which is wide where the rates of two axes are far apart."""


class LevelCosts(NamedTuple):
    """Per axis [..., levels] float64: what a level costs, in nats per token above the dense level."""

    attention: np.ndarray
    mlp: np.ndarray
    bits: np.ndarray


class PriceCurve:
    """Which price makes one axis realise which average share, for tokens of known level costs [M, levels].

    A token takes the level of the lowest cost + price * share, for shares [levels] float64. `spent` [P] is the average
    share at every price.
    """

    def __init__(self, costs: np.ndarray, shares: np.ndarray):
        self.shares = shares
        self.spent = np.array([shares[(costs + price * shares).argmin(-1)].mean() for price in _PRICES])
        # Strictly falling, so that every share between has one price.
        falling = np.minimum.accumulate(self.spent) - np.arange(len(_PRICES)) * 1e-9
        self.rising = np.ascontiguousarray(falling[::-1])

    def price(self, share: np.ndarray) -> np.ndarray:
        """The price at which the average is `share` [...]; the highest or lowest known one beyond the ends."""
        return np.interp(share, self.rising, FALLING_PRICES)

    def share(self, price: float) -> float:
        """The average share at `price`."""
        return float(np.interp(price, _PRICES, self.spent))


def equal_prices(
    curves: list[PriceCurve],
    target: float,
    rates: tuple[float, ...] = NET_RATES,
    fixed: float = 0.0,
    factors: tuple[float, ...] = SAME_COSTS,
) -> Budget:
    """The budget of cost fixed + sum of rates * shares = `target` at which every axis pays the same price for its cost;
    the nearest there is.

    rates: per axis what the whole of it costs, in any unit, such as milliseconds; net keep by default. An axis of rate
    0 saves nothing, so it stays at its highest share. factors: per axis what the level costs of its curve
    are multiplied with.
    """
    costs = np.array(rates)

    def shares(price: float) -> np.ndarray:
        # A level of cost f c at a price of p r is as good as one of cost c at p r / f.
        return np.array([curve.share(price * rate) for curve, rate in zip(curves, costs / factors, strict=True)])

    def cost(spent: np.ndarray) -> float:
        return fixed + float(costs @ spent)

    least = (costs / factors)[costs > 0].min(initial=np.inf)
    low, high = 0.0, float(_PRICES[-1]) / max(float(least), _LEAST_RATE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(shares(middle)) > target else (low, middle)
    cheap, dear = shares(low), shares(high)
    # The average jumps where many tokens change their level at one price: mix the two sides.
    gap = cost(cheap) - cost(dear)
    part = 0.0 if gap < 1e-12 else min(1.0, max(0.0, (target - cost(dear)) / gap))
    return Budget.of((dear + part * (cheap - dear)).tolist())


def without_bias(due: np.ndarray, spent: np.ndarray, expected: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The share for which a price must be set so that the next steps realise `due`.

    Prices are those at which the tokens of training realise a share. The tokens of one text may realise more at every
    price, or less. If only what is left of the budget made that good, a reply would begin above its budget and end
    below it, and one that ends early would have exceeded it.

    spent, expected: sums over the `steps` counted so far, of the shares realised and of those that prices were set for.
    """
    return np.asarray(due - (spent - expected) / (steps + UNBIASED_STEPS))


class PricedPolicy(ABC):
    """Takes for every token the action of the lowest level costs plus price, in the middle of a pass.

    It decides before layer `layer`. The layers before it follow the static schedule of the same budget, so that nothing
    the policy reads depends on its own earlier decisions: known tokens are decided in one pass.

    curves: per axis the average share that every price gives. clamp: rule out actions after which the budget could no
    longer be met.
    """

    reads_model = True

    def __init__(self, space: ActionSpace, layer: int, curves: list[PriceCurve], clamp: bool = True):
        self.space, self.layer, self.curves, self.clamp = space, layer, curves, clamp
        self._realised_curve = lru_cache(_KEPT_CURVES)(self._curve)

    @abstractmethod
    def costs(self, hidden: "torch.Tensor", before: "torch.Tensor") -> LevelCosts:
        """Level costs [N, Q, levels], from the residual stream hidden [N, Q, H] that enters the layer and
        the numbers (attention, MLP, bits) of the layers before it, before [N, Q, 3]."""

    def split(self, net: float) -> Budget:
        """The budget of net keep `net` at which every axis pays the same price for a share."""
        return equal_prices(self.curves, net)

    def split_cost(
        self, target: float, levels: tuple[np.ndarray, ...], rates: tuple[float, ...], fixed: float, context: int
    ) -> Budget:
        """The budget of realised shares of cost fixed + sum of rates * shares = `target`, at one price for that cost.

        levels: per axis [levels] float64, the shares that the levels of the space realise after `context` tokens.
        """
        curves = [self._realised_curve(axis, shares.tobytes()) for axis, shares in enumerate(levels)]
        return equal_prices(curves, target, rates, fixed, self.cost_factors(context))

    def cost_factors(self, context: int) -> tuple[float, ...]:
        """Per axis the factor by which level costs after `context` tokens differ from `training_costs`."""
        return SAME_COSTS

    def _curve(self, axis: int, shares: bytes) -> PriceCurve:
        """The price curve of one axis at realised shares, float64. A server needs those of the same shares again and
        again, and one takes ten milliseconds."""
        return PriceCurve(self.training_costs[axis], np.frombuffer(shares))

    @property
    @abstractmethod
    def training_costs(self) -> LevelCosts:
        """Level costs [M, levels] of tokens seen in training."""

    def allocate(
        self,
        costs: tuple[np.ndarray, ...],
        levels: tuple[np.ndarray, ...],
        target: np.ndarray,
        spent: np.ndarray,
        expected: np.ndarray,
        counted: np.ndarray,
        remaining: Count,
        later: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The action [N] int64 of one step, at the price that the rest of the budget sets per remaining step, and the
        shares [N, 3] that the price was set for.

        costs, levels: per axis [N, levels], level costs in nats and the shares that the levels would realise. target,
        spent: [N, 3] shares asked for, and the sums of those realised over `counted` [N, 3] steps. expected: [N, 3] the
        sums of those that prices were set for. remaining: steps left, this one included. later: lowest and highest
        average shares [N, 3] that the steps after this one can realise, by default this step's.
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
            price = curve.price(_nominal_share(due[:, axis], realised, curve.shares))
            score = cost.astype(np.float64) + price[:, None] * curve.shares
            if self.clamp:
                ends = (realised[:, 0], realised[:, -1]) if later is None else (later[0][:, axis], later[1][:, axis])
                allowed = feasible_levels(realised, target[:, axis], spent[:, axis], counted[:, axis], remaining, ends)
                score = np.where(allowed, score, np.inf)
            # Axes share neither costs nor budgets: the best action has the best level of each.
            action = action * size + score.argmin(1)
        return action, due


def _nominal_share(wanted: np.ndarray, realised: np.ndarray, nominal: np.ndarray) -> np.ndarray:
    """The nominal share [N] at which rows realise `wanted` [N]; the first or last level's beyond the ends.

    realised: [N, L] shares, rising, that levels of nominal shares [L] realise; in short contexts several may be equal.
    """
    lower, upper = two_levels(realised, wanted, _SAME_SHARE)
    low, high = take(realised, lower), take(realised, upper)
    part = ((wanted - low) / np.maximum(high - low, _SAME_SHARE)).clip(0, 1)
    return np.asarray(nominal[lower] + part * (nominal[upper] - nominal[lower]))


def feasible_levels(
    levels: np.ndarray,
    target: np.ndarray,
    spent: np.ndarray,
    counted: np.ndarray,
    remaining: Count,
    later: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """[N, L] bool: levels of one axis after which the budget can still be met by the horizon.

    Where no level can meet it any more, the levels that miss it least.

    levels: [N, L] shares realised at this step. target, spent [N]: share asked for, and sum of shares over `counted`
    steps [N]. remaining: steps left, this one included. later: [N] lowest and highest average share that the steps
    after this one can realise.
    """
    left = np.reshape(np.asarray(remaining) - 1, (-1, 1))
    goal = target[:, None] * (counted + remaining)[:, None]
    total = spent[:, None] + levels
    low, high = (bound[:, None] for bound in later)
    miss = np.maximum(total + left * low - goal, 0) + np.maximum(goal - total - left * high, 0)
    return np.asarray(miss <= miss.min(1, keepdims=True) + 1e-9)
