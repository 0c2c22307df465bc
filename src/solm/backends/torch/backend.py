"""The torch backend: a transformers model under control, on whatever device it lies."""

import numpy as np
import torch
from torch import nn

from solm.backends.torch import triton as kernels
from solm.backends.torch.experts import held
from solm.backends.torch.families import attention_sites, decoder_layers, experts_of, mlp_sites, sample_layer
from solm.backends.torch.hooks import HookedModel
from solm.backends.torch.session import TorchSession
from solm.backends.weight_sample import sampled
from solm.core.errors import UnsupportedModelError
from solm.core.sparsity import MLP_SITES, PERCENTAGES, ChannelThresholds, SparsityConfig

_TOKENS_KEPT = 1024


class TorchBackend(HookedModel):
    """See `solm.backends.session.Backend`. Every action is simulated exactly; no time is saved.

    Raises `UnsupportedModelError` for a model that is controlled already, or whose attention cannot be.
    """

    @property
    def name(self) -> str:
        """Such as ``torch bfloat16``."""
        return f"torch {self.dtype}"

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def sample_weights(self) -> dict[str, np.ndarray]:
        """As `Backend.sample_weights`; nothing of weights that are quantised or elsewhere."""
        layers = decoder_layers(self.model)
        return sampled(len(layers), lambda number: sample_layer(layers[number]))

    def session(self, sparsity: SparsityConfig, capacity: int = 0) -> TorchSession:
        """As `Backend.session`."""
        return TorchSession(self, sparsity, capacity)

    def channel_thresholds(self, windows: torch.Tensor, sites: int = MLP_SITES) -> ChannelThresholds:
        """As `Backend.channel_thresholds`: of 1,024 tokens of the windows, drawn at random with a fixed seed, or all
        where there are fewer."""
        layers = [_modules(layer, sites) for layer in decoder_layers(self.model)]
        some = torch.randperm(windows.numel(), generator=torch.Generator().manual_seed(0))[:_TOKENS_KEPT]
        steps = np.linspace(1, 0, PERCENTAGES)
        found = np.zeros((len(layers), sites, PERCENTAGES), dtype=np.float32)

        def measure(layer: int, site: int):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
                x = args[0] if args else kwargs["hidden_states"]
                x = held(args[2]) if sites == 1 else x
                size = x.flatten(0, -2)[some.to(x.device)].abs().float().cpu().numpy()
                found[layer, site] = np.quantile(size, steps)

            return hook

        hooks = [
            module.register_forward_pre_hook(measure(index, site), with_kwargs=True)
            for index, modules in enumerate(layers) for site, module in enumerate(modules)
        ]  # fmt: skip
        try:
            with torch.no_grad():
                self.model(windows.to(self.device), use_cache=False, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        return ChannelThresholds.of(found)

    def pages_held(self) -> None:
        """As `Backend.pages_held`: rows have tensors of their own."""

    @property
    def exact_passes(self) -> bool:
        """As `Backend.exact_passes`: torch's kernels promise nothing."""
        return False

    @property
    def skipping_rows(self) -> int | None:
        """As `Backend.skipping_rows`: those that the kernels for GPUs take. On a CPU, where budgets are simulated and
        save no time, any number."""
        return kernels.MOST_ROWS if self.device.type == "cuda" else None


def _modules(layer: nn.Module, sites: int) -> tuple[nn.Module, ...]:
    """Those of a decoder layer whose inputs are thresholds'; see `TorchBackend.channel_thresholds`."""
    if sites == 1:
        experts = experts_of(layer)
        if experts is None:
            raise UnsupportedModelError("a share of the experts needs a mixture of them")
        return (experts,)
    return mlp_sites(layer) + (attention_sites(layer) if sites > MLP_SITES else ())
