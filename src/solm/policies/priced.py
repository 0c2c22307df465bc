"""Buying compute at a price: the level of the lowest level cost plus price times share."""

import numpy as np

from solm.core.actions import AXES
from solm.core.budget import Budget
from solm.policies.schedules import Count, take, two_levels

_PRICES = np.concatenate([np.zeros(1), np.logspace(-3, 1.5, 128, dtype=np.float32)]).astype(np.float64)
FALLING_PRICES = np.ascontiguousarray(_PRICES[::-1])
"""[P] float64, nats per share: the prices that belong to the points of `PriceCurve.rising`."""
SAME_COSTS = (1.0,) * len(AXES)
"""Factors of level costs per axis that change nothing."""
UNBIASED_STEPS = 16
"""After so many steps half of the difference between what they realised and what their prices were set for is taken to
last (`without_bias`), and more after more of them."""
_SAME_SHARE = 1e-9
"""Shares that differ by less count as equal."""
_LEAST_RATE = 1e-6
_HALVINGS = 64
"""Of the range of prices, which is wide where the rates of two axes are far apart."""


LevelCosts = tuple[np.ndarray, ...]
"""Per axis [..., levels] float64: what a level costs, in nats per token above the dense level."""


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
    curves: list[PriceCurve], target: float, rates: np.ndarray, factors: tuple[float, ...] = SAME_COSTS
) -> Budget:
    """The budget of this share of the dense step's cost at which every axis pays the same price for its cost; the
    nearest there is.

    rates: per axis what the whole of it costs, as a share of the dense step's cost; what they leave of 1 is spent in
    any case. An axis of rate 0 saves nothing, so it stays at its highest share. factors: per axis what the level costs
    of its curve are multiplied with.
    """

    ratio = rates / np.array(factors)

    def shares(price: float) -> np.ndarray:
        # A level of cost f c at a price of p r is as good as one of cost c at p r / f.
        return np.array([curve.share(price * rate) for curve, rate in zip(curves, ratio, strict=True)])

    def cost(spent: np.ndarray) -> float:
        return 1 - float(rates.sum()) + float(rates @ spent)

    least = ratio[rates > 0].min(initial=np.inf)
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


def nominal_share(wanted: np.ndarray, realised: np.ndarray, nominal: np.ndarray) -> np.ndarray:
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
