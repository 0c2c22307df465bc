"""Weights of 8 bits whose upper 4 bits are a model of their own: precision as a level of each step.

The numbers 0 to 255 of a group of input channels are so placed that the upper halves alone round to the 16 values from
the lowest to the highest weight, as in GGUF's Q4_1. So weights that lie on such a grid already lose little in their
upper halves.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

HIGH_BITS = 4
_HALF = 16
"""Numbers that share their upper half."""
_MIDDLE = (_HALF - 1) / 2
_LEAST_STEP = 2.0**-24
"""The smallest float16 above 0. Weights of a few thousandths have steps below the normal numbers."""


class Nested(NamedTuple):
    """Weights [out, in] as numbers [out, in] uint8, with steps and lowest values [out, groups] float16.

    A weight is lowest + step * number. Where its lower half is not read, 7.5 is taken for it.
    """

    number: "torch.Tensor"
    step: "torch.Tensor"
    lowest: "torch.Tensor"


def nested(weight: "torch.Tensor", group: int = 32) -> Nested:
    """Round weights [out, in] of any float dtype; `group` input channels share a grid, a last group may be shorter."""
    import torch

    short = -weight.shape[1] % group
    # A group's own last weight is among its values already, so it moves neither end of the grid.
    padded = torch.cat([weight, weight[:, -1:].expand(-1, short)], 1).float()
    groups = padded.unflatten(1, (-1, group))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (15 * _HALF)).half()
    lowest = (low - _MIDDLE * step.float()).half()
    numbers = (groups - lowest) / step.float().clamp(min=_LEAST_STEP)
    number = numbers.round().clamp(0, 255).to(torch.uint8).flatten(1)[:, : weight.shape[1]]
    return Nested(number, step[..., 0], lowest[..., 0])


def high_half(weight: "torch.Tensor", group: int = 32) -> "torch.Tensor":
    """The weights [out, in] that a step reads which leaves their lower halves alone, in the dtype of `weight`."""
    number, *grid = nested(weight, group)
    step, lowest = (part.float().repeat_interleave(group, 1)[:, : weight.shape[1]] for part in grid)
    return (lowest + step * (number // _HALF * _HALF + _MIDDLE)).to(weight.dtype)
