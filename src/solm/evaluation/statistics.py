"""Paired bootstrap over sequences."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean difference in nats per token and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of ours - theirs with its 95 % percentile interval from resampling sequences.

    ours, theirs: [sequences] mean nats per token of the same, equally long sequences. One sequence has no spread to
    resample; its interval is the whole line.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2:
        return Interval(float(difference.mean()), -np.inf, np.inf)
    picks = np.random.default_rng(seed).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.percentile(difference[picks].mean(1), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))
