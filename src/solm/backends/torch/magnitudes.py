"""Thresholds on channels from the activations of a loaded model."""

import numpy as np
import torch
from torch import nn

from solm.backends.torch.families import decoder_layers, mlp_sites
from solm.backends.torch.hooks import HookedModel
from solm.core.thresholds import PERCENTAGES, SITES, ChannelThresholds

_TOKENS_KEPT = 1024


def measure_thresholds(hooked: HookedModel, windows: torch.Tensor) -> ChannelThresholds:
    """The |x| above which every whole percentage of channels lies when windows [N, C] are read densely.

    Of 1,024 of their tokens, drawn at random with a fixed seed, or all where there are fewer.
    """
    layers = [mlp_sites(layer) for layer in decoder_layers(hooked.model)]
    some = torch.randperm(windows.numel(), generator=torch.Generator().manual_seed(0))[:_TOKENS_KEPT]
    steps = np.linspace(1, 0, PERCENTAGES)
    found = np.zeros((len(layers), SITES, PERCENTAGES), dtype=np.float32)

    def measure(layer: int, site: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            size = args[0].flatten(0, -2)[some.to(args[0].device)].abs().float().cpu().numpy()
            found[layer, site] = np.quantile(size, steps)

        return hook

    hooks = [
        module.register_forward_pre_hook(measure(index, site))
        for index, sites in enumerate(layers) for site, module in enumerate((sites.mlp, sites.down))
    ]  # fmt: skip
    try:
        with torch.no_grad():
            hooked.model(windows.to(hooked.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return ChannelThresholds.of(found)
