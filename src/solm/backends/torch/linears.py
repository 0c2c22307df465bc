"""Products of an MLP under a plan: those that read the weights of kept channels only, and those with the upper bits of
the weights."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from solm.backends.torch import triton as kernels
from solm.backends.torch.plan import HIDDEN, INPUT, active_pass
from solm.core.errors import UnsupportedModelError

_log = logging.getLogger(__name__)


class MLPLinears:
    """The linear layers of a model's MLPs, and copies of their weights, which are never touched themselves: input-major
    ones from the first step on that skips channels, rounded ones from the first that reads upper bits alone. Each take
    as much memory again as the MLPs do.

    Layers that are anything but plain (quantised, adapted, on the CPU) skip nothing: there, dropped channels are zeros
    that are multiplied.
    """

    def __init__(self) -> None:
        self._skipped: list[Any] = []
        self._weights: dict[nn.Module, torch.Tensor] | None = None
        self._rounded: dict[tuple[nn.Module, int], torch.Tensor] = {}

    def control(self, mlp: nn.Module, down: nn.Module) -> Iterator[Callable[[], object]]:
        """Let the layers of an MLP follow plans; yields what undoes it."""
        for layer in mlp.children():
            if not isinstance(layer, nn.Linear | Conv1D):
                continue
            site = HIDDEN if layer is down else INPUT
            if _plain(layer):
                layer.forward = self._skipping(layer, layer.forward, site)  # type: ignore[method-assign]
                self._skipped.append(layer)
                yield partial(vars(layer).pop, "forward", None)
            yield layer.register_forward_hook(self._reading(site)).remove

    def _skipping(
        self, layer: Any, stock: Callable[[torch.Tensor], torch.Tensor], site: int
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            current = active_pass()
            if current is None or not current.plan.drops(site):
                return stock(x)
            if not kernels.usable(x) or x.numel() > kernels.MOST_ROWS * x.shape[-1]:
                return stock(x)
            if self._weights is None:
                self._weights = self._input_major()
            if layer not in self._weights:
                return stock(x)
            from solm.backends.torch.triton.channel_product import channel_product

            return channel_product(x, self._weights[layer], layer.bias)

        return forward

    def _input_major(self) -> dict[nn.Module, torch.Tensor]:
        """[channels, outputs] of every layer; none where the copies would take more than half of what is free."""
        linears = [layer for layer in self._skipped if isinstance(layer, nn.Linear)]
        needed: dict[torch.device, int] = defaultdict(int)
        for layer in linears:
            needed[layer.weight.device] += layer.weight.numel() * layer.weight.element_size()
        for device, size in needed.items():
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
            if size > free // 2:
                _log.warning(
                    "input-major weights would take %.1f of %.1f GB that are free on %s: "
                    "MLP channels are masked, not skipped",
                    size / 1e9, free / 1e9, device,
                )  # fmt: skip
                return {}
        return {
            layer: layer.weight.t().contiguous() if isinstance(layer, nn.Linear) else layer.weight
            for layer in self._skipped
        }

    def _reading(self, site: int) -> Callable[..., torch.Tensor | None]:
        def hook(layer: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            current = active_pass()
            if current is None or current.plan.sparsity.bits_site != "weights":
                return None
            current.follow(output.device)
            upper_only, group = current.plan.upper_bits_only(site), current.plan.sparsity.bits_group
            if upper_only is None:
                return None
            assert group is not None
            rounded = nn.functional.linear(args[0], self._weight(layer, group), layer.bias)
            return torch.where(upper_only, rounded, output)

        return hook

    def _weight(self, layer: Any, group: int) -> torch.Tensor:
        if (layer, group) not in self._rounded:
            weight = layer.weight.detach()
            if not weight.is_floating_point() or weight.is_meta:
                raise UnsupportedModelError("weight bits need an MLP with float weights that stay in memory")
            self._rounded[layer, group] = high_half(weight.T if isinstance(layer, Conv1D) else weight, group)
        return self._rounded[layer, group]


def _plain(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return (
        type(layer) in (nn.Linear, Conv1D)
        and isinstance(weight, nn.Parameter)
        and type(weight.data) is torch.Tensor
        and "forward" not in vars(layer)
        and kernels.usable(weight)
    )


_HALF = 16
"""Numbers that share their upper half."""
_MIDDLE = (_HALF - 1) / 2
_LEAST_STEP = 2.0**-24
"""The smallest float16 above 0. Weights of a few thousandths have steps below the normal numbers."""


def nested(weight: torch.Tensor, group: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [out, in] of any float dtype in 8 bits whose upper 4 bits are a model of their own: numbers [out, in]
    uint8, with steps and lowest values [out, groups] float16. `group` input channels share a grid, a last group may be
    shorter.

    A weight is lowest + step * number. Where its lower half is not read, 7.5 is taken for it. The numbers 0 to 255 of a
    group of input channels are so placed that the upper halves alone round to the 16 values from the lowest to the
    highest weight, as in GGUF's Q4_1. So weights that lie on such a grid already lose little in their upper halves.
    """
    short = -weight.shape[1] % group
    # A group's own last weight is among its values already, so it moves neither end of the grid.
    padded = torch.cat([weight, weight[:, -1:].expand(-1, short)], 1).float()
    groups = padded.unflatten(1, (-1, group))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (15 * _HALF)).half()
    lowest = (low - _MIDDLE * step.float()).half()
    numbers = (groups - lowest) / step.float().clamp(min=_LEAST_STEP)
    number = numbers.round().clamp(0, 255).to(torch.uint8).flatten(1)[:, : weight.shape[1]]
    return number, step[..., 0], lowest[..., 0]


def high_half(weight: torch.Tensor, group: int = 32) -> torch.Tensor:
    """The weights [out, in] that a step reads which leaves their lower halves alone, in the dtype of `weight`."""
    number, *grid = nested(weight, group)
    step, lowest = (part.float().repeat_interleave(group, 1)[:, : weight.shape[1]] for part in grid)
    return (lowest + step * (number // _HALF * _HALF + _MIDDLE)).to(weight.dtype)
