"""Products of an MLP with the high halves of its weights, simulated: rows that read 4 bits take another product."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from solm.backends.torch.active import active_pass
from solm.backends.torch.families import MLPSites
from solm.backends.torch.plan import HIDDEN, INPUT
from solm.core.errors import UnsupportedModelError
from solm.core.nested import high_half


class NestedLinears:
    """The linear layers of a model's MLPs and, from the first step that asks for them on, their rounded weights.

    These take as much memory again as the MLPs do. Weights themselves are never touched.
    """

    def __init__(self) -> None:
        self._rounded: dict[tuple[nn.Module, int], torch.Tensor] = {}

    def hook(self, sites: MLPSites) -> list[Any]:
        """Let the layers of an MLP follow a plan's weight bits; removing what is returned undoes it."""
        layers = [layer for layer in sites.mlp.children() if isinstance(layer, nn.Linear | Conv1D)]
        return [layer.register_forward_hook(self._after(HIDDEN if layer is sites.down else INPUT)) for layer in layers]

    def _after(self, site: int) -> Callable[..., torch.Tensor | None]:
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
