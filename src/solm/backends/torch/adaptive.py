"""Rules by which a step reads as much as its activations call for, in place of an action's exact numbers.

What such a step spends is known after it alone. So a rule counts what every layer read, and that is booked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from solm.backends.torch.select import keep_where

INPUT, HIDDEN = 0, 1
"""The MLP's sites: what gate and up consume, and what down consumes."""
PERCENTS = 101


@dataclass
class Rule:
    """What replaces exact numbers, and what the layers of the pass in progress have read under it.

    top_p: an action's κ is the share of softmax mass that the pages read must hold. thresholds: [layers, 2, 101]
    float32, the least |x| that is kept at a layer's `INPUT` and `HIDDEN` site, by the percentage of channels that an
    action keeps. attention, mlp: shares read [N, Q], a tensor per layer (and site).
    """

    top_p: bool = False
    thresholds: torch.Tensor | None = None
    attention: list[torch.Tensor] = field(default_factory=list)
    mlp: list[torch.Tensor] = field(default_factory=list)

    def keep_above(self, x: torch.Tensor, limits: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """x [N, Q, D] with the channels below its step's limit set to zero: limits [101], of keep [N, Q]."""
        limit = limits.to(x.device)[(keep * (PERCENTS - 1)).round().long()]
        above = x.abs().float() >= limit[..., None]
        self.mlp.append(above.double().mean(-1))
        return keep_where(x, above)

    def settle(self, realised: torch.Tensor) -> torch.Tensor:
        """Planned shares [N, Q, 3] with those that the rule counted in place of what it decided; starts anew."""
        realised = realised.clone()
        for axis, read in enumerate((self.attention, self.mlp)):
            if read:
                realised[..., axis] = torch.stack(read).mean(0).to(realised)
            read.clear()
        return realised


_RULE: ContextVar[Rule | None] = ContextVar("solm_rule", default=None)


def current_rule() -> Rule | None:
    return _RULE.get()


@contextmanager
def follow(rule: Rule) -> Iterator[None]:
    """Passes inside the block read what `rule` says."""
    token = _RULE.set(rule)
    try:
        yield
    finally:
        _RULE.reset(token)
