"""The cpu backend: the compiled engine alone, from files or from a loaded model."""

from typing import TYPE_CHECKING

import numpy as np

from solm.backends import budgets
from solm.backends.cpu.border import COUNTED, LEAST_STEPS, MAGNITUDES
from solm.backends.cpu.call import Cache, EngineCall
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.layout import FLOATS
from solm.backends.cpu.session import CpuSession
from solm.backends.session import Capability
from solm.backends.weight_sample import sampled
from solm.core.arrays import Array, as_numpy
from solm.core.sparsity import MLP_SITES, PERCENTAGES, ChannelThresholds, SparsityConfig

if TYPE_CHECKING:
    import torch

_CHUNK = 256
_BITS = 17
"""Lower bits of a float32 that a bin does not tell apart: a sixty-fourth of a power of two is one bin."""


class CpuBackend(Engine):
    """See `solm.backends.session.Backend`. Steps read and compute only what an action keeps."""

    @property
    def capability(self) -> Capability:
        return Capability(self.spec.family, tested=True, shapes=self.shapes, sliding=self.spec.sliding_layers)

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> str:
        return self.name.removeprefix("cpu ")

    @property
    def context(self) -> int:
        return self.spec.context

    def sample_weights(self) -> dict[str, np.ndarray]:
        """As `Backend.sample_weights`, from the source: what the engine made of it does not count."""
        return sampled(self.spec.layers, self.sample_layer)

    def session(self, sparsity: SparsityConfig, capacity: int = 0) -> CpuSession:
        """As `Backend.session`."""
        return CpuSession(self, sparsity, capacity)

    def channel_thresholds(self, windows: Array, sites: int = MLP_SITES) -> ChannelThresholds:
        """As `Backend.channel_thresholds`."""
        histogram = np.zeros((self.sizes.layers, COUNTED, MAGNITUDES), np.uint32)
        call = EngineCall(self, SparsityConfig())
        for window in np.ascontiguousarray(as_numpy(windows), np.int64):
            cache, state = (Cache(self, len(window)),), budgets.uncontrolled(1)
            for first in range(0, len(window), _CHUNK):
                part = window[None, first : first + _CHUNK]
                call.run(cache, part, np.array([first]), state, logit_steps=0, histogram=histogram)
        return ChannelThresholds.of(_limits_of(histogram[:, -1:] if sites == 1 else histogram[:, :sites]))

    def pages_held(self) -> tuple[int, int]:
        """As `Backend.pages_held`."""
        memory = self.page_memory()
        return memory.pages, memory.bytes

    @property
    def exact_passes(self) -> bool:
        """As `Backend.exact_passes`: with weights in integers, whose sums do not depend on their order."""
        return self.precision not in FLOATS

    @property
    def skipping_rows(self) -> int:
        """As `Backend.skipping_rows`."""
        return LEAST_STEPS - 1

    def detach(self) -> None:
        """As `Backend.detach`; a loaded model was never changed."""


def _limits_of(histogram: np.ndarray) -> np.ndarray:
    """Limits [..., 101] float64 of the magnitudes that histograms [..., MAGNITUDES] count, to within a bin."""
    counts = histogram.reshape(-1, MAGNITUDES).astype(np.float64)
    limits = np.zeros((len(counts), PERCENTAGES))
    for site, count in enumerate(counts):
        bins = int(np.flatnonzero(count).max(initial=0)) + 2  # those above are empty, and the last ones are no numbers
        edges = (np.arange(bins, dtype=np.uint32) << _BITS).view(np.float32)
        below = np.concatenate([[0], count[: bins - 1].cumsum()]) / max(count.sum(), 1)
        limits[site] = np.interp(np.linspace(1, 0, PERCENTAGES), below, edges)
    return limits.reshape(*histogram.shape[:-1], PERCENTAGES)
