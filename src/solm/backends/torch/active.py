"""The plan of the forward pass in progress, per thread and task; None during dense passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from solm.backends.torch.cache import PagedCache
from solm.backends.torch.layout import Layout
from solm.backends.torch.plan import Plan


@dataclass
class ActivePass:
    """What the hooked modules need during one controlled forward pass.

    plan: of the layer in progress. decide_before: the layer before which `choose` is called, with the residual stream
    [N, Q, H] that enters it, for the plan of the layers from there on. None: the pass keeps its plan. layer: the one
    in progress. Plan and layout follow the layers of a model that lies on several devices.
    """

    plan: Plan
    layout: Layout
    cache: PagedCache
    decide_before: int | None = None
    choose: Callable[[torch.Tensor], Plan] | None = None
    layer: int = 0
    _left_out: torch.Tensor | None = field(default=None, repr=False)  # by thresholds, of all layers

    def __post_init__(self) -> None:
        self._whole = self.plan

    def enter(self, layer: int, hidden: torch.Tensor) -> None:
        """The pass reaches `layer`."""
        self.layer = layer
        if layer == self.decide_before and self.choose is not None:
            self._whole = self.choose(hidden)
        self.plan = self._whole.at(layer)

    def count(self, site: int, share: torch.Tensor) -> None:
        """A site of the layer in progress kept this share [N, Q] float64 of its channels under a threshold."""
        left_out = self.plan.parts[site] * (1 - share * self.plan.channel_cost(site))
        self._left_out = left_out if self._left_out is None else self._left_out.to(left_out.device) + left_out

    def realised_mlp(self) -> torch.Tensor | None:
        """The share of channels that thresholds kept, the mean over layers, sites weighted by `Plan.parts`: [N, Q]
        float64 on the CPU.

        Layers that counted nothing ran dense. None where no layer counted: then the plan's own share holds.
        """
        return None if self._left_out is None else 1 - self._left_out.cpu() / len(self.cache.layers)

    def follow(self, device: torch.device) -> None:
        """The layer in progress computes on `device`."""
        if self.plan.keep.device != device:
            self.plan = self.plan.to(device)
        if self.layout.positions.device != device:
            self.layout = self.layout.to(device)


_ACTIVE: ContextVar[ActivePass | None] = ContextVar("solm_active_pass", default=None)


def active_pass() -> ActivePass | None:
    return _ACTIVE.get()


@contextmanager
def activate(current: ActivePass | None) -> Iterator[None]:
    """Make `current` the pass in progress; whatever happens inside, it does not outlive the block."""
    token = _ACTIVE.set(current)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
