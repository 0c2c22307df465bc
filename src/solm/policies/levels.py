"""Rules that every budget shares: what is due per step, and the two levels between which a share lies."""

import numpy as np

from solm.core.arrays import AnyArray

SHORTEST_HORIZON = 8
"""Steps over which a deviation from the budget is made good, even where fewer are left."""
UNBIASED_STEPS = 16
"""After so many steps half of the difference between what they realised and what their prices were set for is taken to
last (`without_bias`), and more after more of them."""
SAME_SHARE = 1e-9
"""Shares that differ by less count as equal."""


def due_share(target: AnyArray, spent: AnyArray, steps: AnyArray, horizon: AnyArray | int) -> AnyArray:
    """The average share that the next `horizon` steps must realise for the average over all steps to be `target`.

    target: share asked for; spent: sum of the shares realised in the `steps` counted so far. NumPy arrays or tensors of
    any shapes that broadcast.
    """
    due: AnyArray = (target * (steps + horizon) - spent) / horizon
    return due


def without_bias(due: AnyArray, spent: AnyArray, expected: AnyArray, steps: AnyArray) -> AnyArray:
    """The share for which a price must be set so that the next steps realise `due`.

    Prices are those at which the tokens of training realise a share. The tokens of one text may realise more at every
    price, or less. If only what is left of the budget made that good, a reply would begin above its budget and end
    below it, and one that ends early would have exceeded it.

    spent, expected: sums over the `steps` counted so far, of the shares realised and of those that prices were set for.
    """
    found: AnyArray = due - (spent - expected) / (steps + UNBIASED_STEPS)
    return found


def two_levels(levels: np.ndarray, target: np.ndarray, tolerance: float = 1e-12) -> tuple[np.ndarray, np.ndarray]:
    """Indices [...] int64 of the two neighbouring levels around `target` [...], the lower one first.

    levels: [..., L] realised shares, rising. Below the first level and above the last one: the first or last two. The
    same index twice where there is one level. tolerance: a level that exceeds the target by no more counts as met.
    """
    last = levels.shape[-1] - 1
    # Every token asks: minimum and maximum take a third of the time of clip.
    met = (levels <= target[..., None] + tolerance).sum(-1) - 1
    lower = np.minimum(np.maximum(met, 0), max(0, last - 1))
    return lower, np.minimum(lower + 1, last)


def take(levels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The entries [...] of levels [..., L] at `index` [...]."""
    flat = levels.reshape(-1, levels.shape[-1])  # np.take_along_axis takes five times as long
    return flat[np.arange(index.size), index.reshape(-1)].reshape(index.shape)
