"""The torch backend: a transformers model under control, on whatever device it lies."""

import numpy as np
import torch
from transformers import PreTrainedModel

from solm.backends.torch import triton as kernels
from solm.backends.torch.families import decoder_layers, sample_layer
from solm.backends.torch.hooks import HookedModel
from solm.backends.torch.magnitudes import measure_thresholds
from solm.backends.torch.session import TorchSession
from solm.backends.weight_sample import sampled
from solm.core.arrays import Array, as_tensor
from solm.core.sparsity import MLP_SITES, ChannelThresholds, SparsityConfig


class TorchBackend:
    """See `solm.backends.session.Backend`. Every action is simulated exactly; no time is saved.

    Raises `UnsupportedModelError` for a model that is controlled already, or whose attention cannot be.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.hooked = HookedModel(model)
        self.shapes, self.capability = self.hooked.shapes, self.hooked.capability

    @property
    def name(self) -> str:
        """Such as ``torch bfloat16``."""
        return f"torch {self.dtype}"

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self.hooked.device

    @property
    def context(self) -> int | None:
        return self.hooked.context

    def embed(self, tokens: Array) -> torch.Tensor:
        """Input embeddings of tokens [...]: [..., H]."""
        return self.hooked.embed(as_tensor(tokens).to(self.device))

    def sample_weights(self) -> dict[str, np.ndarray]:
        """As `Backend.sample_weights`; nothing of weights that are quantised or elsewhere."""
        layers = decoder_layers(self.model)
        return sampled(len(layers), lambda number: sample_layer(layers[number]))

    def session(self, sparsity: SparsityConfig, capacity: int = 0) -> TorchSession:
        """As `Backend.session`."""
        return TorchSession(self.hooked, sparsity, capacity)

    def channel_thresholds(self, windows: torch.Tensor, sites: int = MLP_SITES) -> ChannelThresholds:
        """As `Backend.channel_thresholds`."""
        return measure_thresholds(self.hooked, windows, sites)

    def pages_held(self) -> None:
        """As `Backend.pages_held`: rows have tensors of their own."""

    @property
    def skipping_rows(self) -> int | None:
        """As `Backend.skipping_rows`: those that the kernels for GPUs take. On a CPU, where budgets are simulated and
        save no time, any number."""
        return kernels.MOST_ROWS if self.device.type == "cuda" else None

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self.hooked.detach()
