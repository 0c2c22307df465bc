"""Weights in two halves of 4 bits, of which the high ones alone are a 4-bit model: precision as a level of each step.

The high half rounds to a grid of 16 values from the lowest to the highest weight of a group of input channels, as in
GGUF's Q4_1; the low half is what that leaves, in fifteenths of a step. So weights that lie on such a grid already lose
nothing in their high halves, and both halves together are as fine as 8 bits.
"""

from typing import NamedTuple

import torch

HIGH_BITS = 4
_MOST = 15


class Nested(NamedTuple):
    """Weights [out, in] as halves: high and low [out, in] uint8, steps and lowest values [out, groups] float16.

    A weight is lowest + step · high, plus step · (low / 15 - 1 / 2) where its low half is read too.
    """

    high: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor
    lowest: torch.Tensor


def halves(weight: torch.Tensor, group: int = 32) -> Nested:
    """Split weights [out, in] of any float dtype; `group` input channels share a grid, a last group may be shorter."""
    short = -weight.shape[1] % group
    # A group's own last weight is among its values already, so it moves neither end of the grid.
    padded = torch.cat([weight, weight[:, -1:].expand(-1, short)], 1).float()
    groups = padded.unflatten(1, (-1, group))
    lowest = groups.amin(-1, keepdim=True).half()
    step = ((groups.amax(-1, keepdim=True) - lowest) / _MOST).half()
    steps = (groups - lowest) / step.float().clamp(min=torch.finfo(torch.float16).tiny)
    high = steps.round().clamp(0, _MOST)
    low = ((steps - high + 0.5) * _MOST).round().clamp(0, _MOST)
    high, low = (part.to(torch.uint8).flatten(1)[:, : weight.shape[1]] for part in (high, low))
    return Nested(high, low, step[..., 0], lowest[..., 0])


def high_half(weight: torch.Tensor, group: int = 32) -> torch.Tensor:
    """The weights [out, in] that a step reads which leaves their low halves alone, in the dtype of `weight`."""
    nested = halves(weight, group)
    step, lowest = (
        part.float().repeat_interleave(group, 1)[:, : weight.shape[1]] for part in (nested.step, nested.lowest)
    )
    return (lowest + step * nested.high).to(weight.dtype)
