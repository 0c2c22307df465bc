"""Thresholds on channels from what the engine counts of the magnitudes that reach its products."""

import numpy as np

from solm.backends import budgets
from solm.backends.cpu.border import MAGNITUDES
from solm.backends.cpu.call import Cache, EngineCall
from solm.backends.cpu.engine import Engine
from solm.core.sparsity import SparsityConfig
from solm.core.thresholds import MLP_SITES, PERCENTAGES, SITES, ChannelThresholds

_CHUNK = 256
_BITS = 17
"""Lower bits of a float32 that a bin does not tell apart: a sixty-fourth of a power of two is one bin."""


def measure_thresholds(
    engine: Engine, sparsity: SparsityConfig, windows: np.ndarray, sites: int = MLP_SITES
) -> ChannelThresholds:
    """The |x| above which every whole percentage of channels lies when windows [N, C] are read densely, at the first
    `sites` of `SITES`."""
    histogram = np.zeros((engine.sizes.layers, len(SITES), MAGNITUDES), np.uint32)
    call = EngineCall(engine, sparsity.exact)
    for window in np.ascontiguousarray(windows, np.int64):
        cache, state = (Cache(engine, len(window)),), budgets.uncontrolled(1)
        for first in range(0, len(window), _CHUNK):
            part = window[None, first : first + _CHUNK]
            call.run(cache, part, np.array([first]), state, logit_steps=0, histogram=histogram)
    return ChannelThresholds.of(limits_of(histogram[:, :sites]))


def limits_of(histogram: np.ndarray) -> np.ndarray:
    """Limits [..., 101] float64 of the magnitudes that histograms [..., MAGNITUDES] count, to within a bin."""
    counts = histogram.reshape(-1, MAGNITUDES).astype(np.float64)
    limits = np.zeros((len(counts), PERCENTAGES))
    for site, count in enumerate(counts):
        bins = int(np.flatnonzero(count).max(initial=0)) + 2  # those above are empty, and the last ones are no numbers
        edges = (np.arange(bins, dtype=np.uint32) << _BITS).view(np.float32)
        below = np.concatenate([[0], count[: bins - 1].cumsum()]) / max(count.sum(), 1)
        limits[site] = np.interp(np.linspace(1, 0, PERCENTAGES), below, edges)
    return limits.reshape(*histogram.shape[:-1], PERCENTAGES)
