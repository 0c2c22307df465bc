"""Paired bootstrap over texts."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean difference in nats per token and its 95 % interval."""

    value: float
    low: float
    high: float


_PICKS = 1 << 22
"""Texts of all resamples that are drawn together."""


def paired_difference(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of ours - theirs with its 95 % percentile interval from resampling texts.

    ours, theirs: [texts] mean nats per token of the same, equally long texts. One text has no spread to
    resample; its interval is the whole line.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2:
        return Interval(float(difference.mean()), -np.inf, np.inf)
    random, size = np.random.default_rng(seed), len(difference)
    some = max(1, _PICKS // size)  # resamples at a time, of which thousands of texts would not fit into memory
    means = [
        difference[random.integers(size, size=(min(some, resamples - done), size))].mean(1)
        for done in range(0, resamples, some)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))
