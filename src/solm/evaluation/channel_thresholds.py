"""TEAL's way on the MLP axis (arXiv 2408.14690): magnitude thresholds per layer in place of an exact top-k."""

import numpy as np
import torch
from torch import nn

from solm.backends.torch.adaptive import PERCENTS, Rule
from solm.backends.torch.families import decoder_layers, mlp_sites
from solm.core.actions import ActionSpace
from solm.core.errors import SolmError
from solm.data.windows import TokenStream
from solm.evaluation.arms import Arm
from solm.policies.schedules import Static
from solm.runtime.language_model import LanguageModel

_TEXTS, _TOKENS_KEPT = 16, 1024


def thresholds(lm: LanguageModel, tuning: TokenStream, space: ActionSpace, context: int, seed: int = 0) -> Arm:
    """A constant MLP keep rate by thresholds, the same rate in every layer and site; the other axes are static.

    The rate is an average over `tuning`: on other text and on single tokens more or fewer channels pass, and that is
    booked. The rate need not be a level of `space`, as a threshold can be anything.
    Raises `SolmError` where the MLP site is ``gate-first``.
    """
    if lm.sparsity.mlp_site == "gate-first":
        raise SolmError("thresholds need the MLP site input, hidden or input+hidden, not gate-first")
    rates = tuple(percent / 100 for percent in range(1, 101))
    fine = ActionSpace(attention=space.attention, mlp=rates, bits=space.bits)
    limits = channel_limits(lm, tuning.spaced(_TEXTS, context, torch.Generator().manual_seed(seed)))
    return Arm(Static(fine), rule=lambda: Rule(thresholds=limits))


def channel_limits(lm: LanguageModel, windows: torch.Tensor) -> torch.Tensor:
    """The |x| above which a given percentage of channels lies [layers, 2, 101] float32, when windows [N, C] are read
    densely: of the inputs of every layer's MLP and of its down projection."""
    layers = [mlp_sites(layer) for layer in decoder_layers(lm.model)]
    some = torch.randperm(windows.numel(), generator=torch.Generator().manual_seed(0))[:_TOKENS_KEPT]
    steps = np.linspace(1, 0, PERCENTS)
    found = torch.zeros(len(layers), 2, PERCENTS)

    def measure(layer: int, site: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            size = args[0].flatten(0, -2)[some.to(args[0].device)].abs().float().cpu().numpy()
            found[layer, site] = torch.from_numpy(np.quantile(size, steps)).float()

        return hook

    hooks = [
        module.register_forward_pre_hook(measure(index, site))
        for index, sites in enumerate(layers) for site, module in enumerate((sites.mlp, sites.down))
    ]  # fmt: skip
    try:
        lm.session(capacity=windows.shape[1]).prefill(windows)
    finally:
        for hook in hooks:
            hook.remove()
    found[..., -1] = 0  # everything
    return found
