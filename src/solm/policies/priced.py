"""Buying compute where it is worth its price: from predicted gains to actions that meet a budget."""

from abc import ABC, abstractmethod

import numpy as np
import torch

from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.budget import Budget
from solm.policies.protocol import Observation, feasible_levels

Gains = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Per axis [..., levels]: log-probability of the next token above the dense step's, in nats."""

_PRICES = torch.cat([torch.zeros(1), torch.logspace(-3, 1.5, 128)]).double()
FALLING = _PRICES.flip(0).numpy()
"""The prices that belong to the points of `PriceCurve.rising`."""
_SAME = 1e-9
"""Shares that differ by less are one."""
SHORTEST_HORIZON = 8
"""Steps over which a deviation from the budget is made good, even where fewer are left: the feasibility clamp takes
care of the last ones."""


class PriceCurve:
    """Which price makes one axis spend what, for tokens of known gains [M, levels] at shares [levels].

    A token takes the level of the highest gain − price · share. `spent` is the average share at every price.
    """

    def __init__(self, gains: torch.Tensor, shares: torch.Tensor):
        gains = gains.double()
        self.spent = torch.stack([shares[(gains - price * shares).argmax(-1)].mean() for price in _PRICES])
        self.shares = shares.numpy()
        # Strictly falling, so that every share between has one price.
        falling = torch.cummin(self.spent, 0).values - torch.arange(len(_PRICES)) * 1e-9
        self.rising = falling.flip(0).numpy()

    def price(self, share: np.ndarray) -> np.ndarray:
        """The price at which the average is `share` [...]; the highest or lowest known one beyond the ends."""
        return np.interp(share, self.rising, FALLING)

    def share(self, price: float) -> float:
        """The average share at `price`."""
        upper = int(torch.searchsorted(_PRICES, torch.tensor(price, dtype=torch.float64)).clamp(1, len(_PRICES) - 1))
        part = (price - float(_PRICES[upper - 1])) / float(_PRICES[upper] - _PRICES[upper - 1])
        return float(self.spent[upper - 1] + min(1.0, max(0.0, part)) * (self.spent[upper] - self.spent[upper - 1]))


def price_curves(space: ActionSpace, gains: Gains) -> list[PriceCurve]:
    """Per axis the curve of tokens with gains [M, levels], at nominal shares."""
    shares = (space.attention, space.mlp, [bits / FULL_BITS for bits in space.bits])
    return [
        PriceCurve(gain, torch.tensor(levels, dtype=torch.float64)) for gain, levels in zip(gains, shares, strict=True)
    ]


def equal_prices(curves: list[PriceCurve], net: float) -> Budget:
    """The budget of net keep `net` at which every axis pays the same price for a share; the nearest there is."""

    def shares(price: float) -> list[float]:
        return [curve.share(price) for curve in curves]

    low, high = 0.0, float(_PRICES[-1])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) / 3 > net else (low, middle)
    cheap, dear = shares(low), shares(high)
    # The average jumps where many tokens change their level at one price: mix the two sides.
    gap = (sum(cheap) - sum(dear)) / 3
    part = 0.0 if gap < 1e-12 else min(1.0, max(0.0, (net - sum(dear) / 3) / gap))
    attention, mlp, bits = (b + part * (a - b) for a, b in zip(cheap, dear, strict=True))
    return Budget(attention=attention, mlp=mlp, bits=bits * FULL_BITS)


class PricedPolicy(ABC):
    """Takes, token by token, the action of the highest gain less price, in mid-pass before layer `layer`.

    The layers before it follow the static schedule of the same budget, so nothing that it reads depends on what it
    decided earlier: known tokens are decided in the pass that scores them.

    curves: per axis, what every price spends. clamp: rule out actions after which the budget could no longer be met.
    """

    reads_model = True

    def __init__(self, space: ActionSpace, layer: int, curves: list[PriceCurve], clamp: bool = True):
        self.space, self.layer, self.curves, self.clamp = space, layer, curves, clamp

    @abstractmethod
    def gains(self, hidden: torch.Tensor, before: torch.Tensor) -> Gains:
        """Per axis [N, Q, levels] on the host, from the residual stream hidden [N, Q, H] and what the layers before
        did, keep numbers before [N, Q, 3]."""

    def split(self, net: float) -> Budget:
        """The budget of net keep `net` at which every axis pays the same price for a share."""

        return equal_prices(self.curves, net)

    def allocate(self, gains: Gains, seen: Observation) -> torch.Tensor:
        """The action [N] for one step with gains [N, levels] per axis, at the price that what is left of the budget
        per remaining step sets."""
        # On the host and in numpy: these are a few numbers a row, and torch takes ten times as long to start.
        horizon = np.maximum(seen.remaining, SHORTEST_HORIZON)
        target, spent, steps = seen.target.numpy(), seen.ledger.spent.numpy(), seen.ledger.steps.numpy()
        action = np.zeros(len(target), dtype=np.int64)
        allowed = feasible_levels(seen) if self.clamp else None
        for axis, (gain, realised, curve) in enumerate(zip(gains, seen.levels, self.curves, strict=True)):
            levels = realised.numpy()
            size = levels.shape[1]
            if size == 1:
                continue
            due = (target[:, axis] * (steps + horizon) - spent[:, axis]) / horizon
            # Prices are of nominal shares. What a step realises is not in proportion to them: some pages are always
            # read, and all of them whole. In short contexts several levels may realise the same.
            price = curve.price(_at(due, levels, curve.shares))
            score = gain.numpy().astype(np.float64) - price[:, None] * curve.shares
            if allowed is not None:
                score = np.where(allowed[axis], score, -np.inf)
            # Axes share neither gains nor budgets: the best action has the best level of each.
            action = action * size + score.argmax(1)
        return torch.from_numpy(action)


def _at(wanted: np.ndarray, realised: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The nominal share [N] at which rows realise `wanted` [N], where levels of `shares` [L] realise `realised` [N, L],
    rising; the first or last one beyond the ends."""
    rows, last = np.arange(len(wanted)), realised.shape[1] - 2
    below = ((realised <= wanted[:, None] + _SAME).sum(1) - 1).clip(0, last)
    low, high = realised[rows, below], realised[rows, below + 1]
    part = ((wanted - low) / np.maximum(high - low, _SAME)).clip(0, 1)
    return np.asarray(shares[below] + part * (shares[below + 1] - shares[below]))
