"""The cpu backend: the compiled engine alone, from files or from a loaded model."""

from typing import TYPE_CHECKING

import numpy as np

from solm.backends import budgets
from solm.backends.cpu.border import LEAST_STEPS, MAGNITUDES
from solm.backends.cpu.call import Cache, EngineCall
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.repack import Progress
from solm.backends.cpu.files.sources import WeightSource
from solm.backends.cpu.session import CpuSession
from solm.backends.session import Capability
from solm.backends.weight_sample import sampled
from solm.core.arrays import AnyArray, as_numpy, in_kind
from solm.core.sparsity import MLP_SITES, PERCENTAGES, SITES, ChannelThresholds, SparsityConfig

if TYPE_CHECKING:
    import torch

_CHUNK = 256
_BITS = 17
"""Lower bits of a float32 that a bin does not tell apart: a sixty-fourth of a power of two is one bin."""


class CpuBackend:
    """See `solm.backends.session.Backend`. Steps read and compute only what an action keeps.

    source: the weights, which the engine copies into its own layout, but for the embeddings. precision, threads,
    kv_cache_dtype, progress: as for `Engine`. Raises as `Engine` does.
    """

    def __init__(
        self,
        source: WeightSource,
        sparsity: SparsityConfig,
        precision: str = "auto",
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
        progress: Progress | None = None,
    ):
        self.engine = Engine(source, sparsity, precision, threads, kv_cache_dtype, progress=progress)
        self.shapes, self._sparsity = self.engine.shapes, sparsity
        self.capability = Capability(
            source.spec.family, tested=True, shapes=self.shapes, sliding=source.spec.sliding_layers
        )

    @property
    def name(self) -> str:
        """Such as ``cpu int8``."""
        return self.engine.name

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> str:
        return self.engine.name.removeprefix("cpu ")

    @property
    def context(self) -> int:
        return self.engine.spec.context

    def embed(self, tokens: AnyArray) -> AnyArray:
        """As `Backend.embed`."""
        return in_kind(self.engine.embed(as_numpy(tokens)), tokens)

    def sample_weights(self) -> dict[str, np.ndarray]:
        """As `Backend.sample_weights`, from the source: what the engine made of it does not count."""
        return sampled(self.shapes.layers, self.engine.sample_layer)

    def session(self, sparsity: SparsityConfig, capacity: int = 0) -> CpuSession:
        """As `Backend.session`."""
        return CpuSession(self.engine, sparsity, capacity)

    def channel_thresholds(self, windows: "torch.Tensor", sites: int = MLP_SITES) -> ChannelThresholds:
        """As `Backend.channel_thresholds`."""
        return measure_thresholds(self.engine, self._sparsity, as_numpy(windows), sites)

    def pages_held(self) -> tuple[int, int]:
        """As `Backend.pages_held`."""
        memory = self.engine.page_memory()
        return memory.pages, memory.bytes

    @property
    def skipping_rows(self) -> int:
        """As `Backend.skipping_rows`."""
        return LEAST_STEPS - 1

    def detach(self) -> None:
        """As `Backend.detach`; a loaded model was never changed."""


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
