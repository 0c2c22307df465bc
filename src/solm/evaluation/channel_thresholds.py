"""The arm `teal`: magnitude thresholds on MLP channels in place of an exact top-k (TEAL, arXiv 2408.14690)."""

import numpy as np
import torch
from torch import nn

from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.families import decoder_layers, mlp_sites
from solm.core.actions import ActionSpace
from solm.core.errors import SolmError
from solm.core.thresholds import PERCENTAGES, SITES, ChannelThresholds
from solm.evaluation.arms import Arm
from solm.evaluation.baselines import BaselineRequest
from solm.policies.schedules import Static
from solm.runtime.language_model import LanguageModel

_TEXTS, _TOKENS_KEPT = 16, 1024


def teal(request: BaselineRequest) -> Arm:
    """A constant MLP keep rate by thresholds; the other axes mix two levels.

    The rate is an average over the tuning text: on other text and on single tokens more or fewer channels pass, and
    what passed is what is realised. The rate need not be a level of the space, as a threshold can be anything.
    Raises `SolmError` without tuning text, and on the cpu backend, which has no thresholds.
    """
    lm, space = request.lm, request.space
    if not isinstance(lm.backend, TorchBackend):
        raise SolmError("the arm teal needs the torch backend: thresholds on channels are not part of cpu")
    if request.tuning is None:
        raise SolmError("the arm teal needs text to measure its thresholds on: give --tuning")
    windows = request.tuning.spaced(_TEXTS, request.context, torch.Generator().manual_seed(request.seed))
    rates = tuple(percent / 100 for percent in range(1, PERCENTAGES))
    fine = ActionSpace(attention=space.attention, mlp=rates, bits=space.bits)
    return Arm(Static(fine), lm.sparsity.model_copy(update={"thresholds": channel_thresholds(lm, windows)}))


def channel_thresholds(lm: LanguageModel, windows: torch.Tensor) -> ChannelThresholds:
    """The |x| above which every whole percentage of channels lies when windows [N, C] are read densely."""
    layers = [mlp_sites(layer) for layer in decoder_layers(lm.model)]
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
        lm.session(capacity=windows.shape[1]).prefill(windows)
    finally:
        for hook in hooks:
            hook.remove()
    found[..., -1] = 0  # at 100 percent everything passes
    return ChannelThresholds(limits=found.tolist())
