"""Products of an MLP that read the weights of kept channels only: on a GPU, in steps of a few rows.

The hooks of `ModelControl` zero the channels that an action drops; here the products that follow skip them. A weight
must lie input-major for that, so the first such step copies the weights of all MLPs: SmolLM2-135M takes 59 % more
memory in bfloat16, a Llama of 8B 11.3 GB more. (Laying them out anew in place would cost nothing but could change the
last bits of dense passes, which are the stock model's.) Detaching frees the copies.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from solm.backends.torch import triton as kernels
from solm.backends.torch.active import active_pass
from solm.backends.torch.families import MLPSites
from solm.backends.torch.plan import HIDDEN, INPUT

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replaced:
    """A module whose `forward` was replaced; `remove` gives it back."""

    module: nn.Module

    def remove(self) -> None:
        vars(self.module).pop("forward", None)


class ChannelLinears:
    """The linear layers of a model's MLPs and, from the first step that skips channels on, their input-major weights.

    Layers that are anything but plain (quantised, adapted, on the CPU) are left alone: there, dropped channels are
    zeros that are multiplied.
    """

    def __init__(self) -> None:
        self._layers: list[Any] = []
        self._weights: dict[nn.Module, torch.Tensor] | None = None

    def replace(self, sites: MLPSites) -> list[Replaced]:
        """Let the layers of an MLP skip the channels that its sites drop; removing what is returned undoes it."""
        layers: list[Any] = [layer for layer in sites.mlp.children() if _plain(layer)]
        for layer in layers:
            layer.forward = self._skipping(layer, layer.forward, HIDDEN if layer is sites.down else INPUT)
        self._layers += layers
        return [Replaced(layer) for layer in layers]

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
        linears = [layer for layer in self._layers if isinstance(layer, nn.Linear)]
        needed: dict[torch.device, int] = defaultdict(int)
        for layer in linears:
            needed[layer.weight.device] += layer.weight.numel() * layer.weight.element_size()
        for device, size in needed.items():
            free = _free_bytes(device)
            if size > free // 2:
                _log.warning(
                    "input-major weights would take %.1f of %.1f GB that are free on %s: "
                    "MLP channels are masked, not skipped",
                    size / 1e9, free / 1e9, device,
                )  # fmt: skip
                return {}
        return {
            layer: layer.weight.t().contiguous() if isinstance(layer, nn.Linear) else layer.weight
            for layer in self._layers
        }


def _plain(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return (
        type(layer) in (nn.Linear, Conv1D)
        and isinstance(weight, nn.Parameter)
        and type(weight.data) is torch.Tensor
        and "forward" not in vars(layer)
        and kernels.usable(weight)
    )


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
