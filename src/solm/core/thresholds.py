"""Thresholds on channels: how large |x| must be for a channel to be kept, by the share that an action keeps."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pydantic import field_validator

from solm.core.actions import Frozen
from solm.core.errors import PolicyMismatchError

if TYPE_CHECKING:
    import torch

SITES = ("input", "hidden", "qkv", "out")
"""Where a layer drops channels: what gate and up read, what down reads; what the query, key and value projections read,
and what the output projection of attention reads."""
MLP_SITES = 2
"""The first ones, which are of the MLP."""
PERCENTAGES = 101


class ChannelThresholds(Frozen):
    """Limits on |x| that replace an exact number of channels (TEAL, arXiv 2408.14690).

    limits: for every layer and site, those of the MLP or all of `SITES`, 101 numbers. The one at place p is the least
    |x| that a step keeps whose action keeps p percent of the site's channels. They fall to 0, with which every channel
    is kept. What a step keeps is known after it has run.
    """

    limits: tuple[tuple[tuple[float, ...], ...], ...]

    @field_validator("limits")
    @classmethod
    def _check(cls, limits: tuple[tuple[tuple[float, ...], ...], ...]) -> tuple[tuple[tuple[float, ...], ...], ...]:
        sites = {len(layer) for layer in limits}
        if len(sites) != 1 or not sites <= {MLP_SITES, len(SITES)}:
            raise ValueError(f"limits need at least one layer, and {MLP_SITES} or {len(SITES)} sites for every layer")
        if any(len(site) != PERCENTAGES for layer in limits for site in layer):
            raise ValueError(f"limits need {PERCENTAGES} numbers for every site, of 0 to 100 percent")
        table = np.array(limits, dtype=np.float64)
        if not np.isfinite(table).all() or (np.diff(table) > 0).any() or (table[..., -1] != 0).any():
            raise ValueError("the limits of a site must be finite and fall to 0 at 100 percent")
        return limits

    @classmethod
    def of(cls, limits: np.ndarray) -> "ChannelThresholds":
        """From limits [layers, sites, 101], of which the last of a site is taken as 0 and four digits are kept."""
        digits = np.array([float(f"{limit:.4g}") for limit in np.asarray(limits).flat]).reshape(limits.shape)
        digits[..., -1] = 0
        return cls(limits=np.minimum.accumulate(digits, -1).tolist())

    @property
    def layers(self) -> int:
        return len(self.limits)

    @property
    def sites(self) -> int:
        return len(self.limits[0])

    def check(self, layers: int) -> None:
        """Raises `PolicyMismatchError` for a model of another number of layers."""
        if self.layers != layers:
            raise PolicyMismatchError(f"thresholds of {self.layers} layers do not fit a model of {layers}")

    # A sparsity is compared and hashed at every pass.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelThresholds) and self.limits == other.limits

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.limits)

    @cached_property
    def array(self) -> np.ndarray:
        """[layers, sites, 101] float32."""
        return np.array(self.limits, dtype=np.float32)

    @cached_property
    def table(self) -> "torch.Tensor":
        """[layers, sites, 101] float32."""
        import torch

        return torch.tensor(self.array)

    def at(self, layer: int, site: int, keep: "torch.Tensor") -> "torch.Tensor":
        """The limits of steps that keep the share `keep` [...] of a site's channels, on lines between those of whole
        percentages: float32 [...]."""
        place = keep.double() * (PERCENTAGES - 1)
        below = place.long().clamp(0, PERCENTAGES - 2)
        limits = self.table[layer, site].to(keep.device)
        return limits[below] + (place - below).float() * (limits[below + 1] - limits[below])
