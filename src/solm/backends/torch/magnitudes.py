"""Thresholds on channels from the activations of a loaded model."""

import numpy as np
import torch
from torch import nn

from solm.backends.torch.families import attention_sites, decoder_layers, mlp_sites
from solm.backends.torch.hooks import HookedModel
from solm.core.sparsity import MLP_SITES, PERCENTAGES, ChannelThresholds

_TOKENS_KEPT = 1024


def measure_thresholds(hooked: HookedModel, windows: torch.Tensor, sites: int = MLP_SITES) -> ChannelThresholds:
    """The |x| above which every whole percentage of channels lies when windows [N, C] are read densely, at the first
    `sites` of `SITES`.

    Of 1,024 of their tokens, drawn at random with a fixed seed, or all where there are fewer.
    """
    layers = [_modules(layer, sites) for layer in decoder_layers(hooked.model)]
    some = torch.randperm(windows.numel(), generator=torch.Generator().manual_seed(0))[:_TOKENS_KEPT]
    steps = np.linspace(1, 0, PERCENTAGES)
    found = np.zeros((len(layers), sites, PERCENTAGES), dtype=np.float32)

    def measure(layer: int, site: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            size = x.flatten(0, -2)[some.to(x.device)].abs().float().cpu().numpy()
            found[layer, site] = np.quantile(size, steps)

        return hook

    hooks = [
        module.register_forward_pre_hook(measure(index, site), with_kwargs=True)
        for index, modules in enumerate(layers) for site, module in enumerate(modules)
    ]  # fmt: skip
    try:
        with torch.no_grad():
            hooked.model(windows.to(hooked.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return ChannelThresholds.of(found)


def _modules(layer: nn.Module, sites: int) -> list[nn.Module]:
    """The modules whose inputs are those of the first sites of a layer."""
    mlp = mlp_sites(layer)
    if sites == MLP_SITES:
        return [mlp.mlp, mlp.down]
    attention = attention_sites(layer)
    return [mlp.mlp, mlp.down, attention.attention, attention.out]
