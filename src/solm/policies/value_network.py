"""The network of the value policy."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from solm.core.actions import AXES
from solm.core.arrays import as_numpy
from solm.policies.value_weights import ValueConfig, ValueWeights

_SOFTPLUS_ONE = 0.5413  # softplus of it is 1


class ValueNetwork(nn.Module):
    """Residual stream of the current token to its sensitivity per axis, with one hidden layer.

    The cost of a level is the axis's sensitivity times the level's average cost; on attention only the own part of that
    average is multiplied. The cost of an action is the sum over its axes. With one number per axis the costs of its
    levels stay ordered and convex, which a prediction per level would lose in its noise, and a network that has learned
    nothing allocates as the static schedule does.

    level_costs: per axis [levels - 1] average costs of the levels of the grid below the dense one, nats, at least 0.
    scale: [3] divides sensitivities so that they are 1 on average. trust: [3] in [0, 1] shrinks them towards 1.
    training_sensitivities: [M, 3] float16 sensitivities of training tokens.
    """

    def __init__(self, config: ValueConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.read = nn.Linear(config.base_hidden + len(AXES), config.width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.width, len(AXES))
        self.level_costs = nn.ParameterList(torch.linspace(0.5, 0.1, size - 1) for size in config.grid.shape)
        self.training_sensitivities: torch.Tensor
        kept = torch.ones(config.kept_sensitivities, len(AXES), dtype=torch.float16)
        self.register_buffer("training_sensitivities", kept)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(len(AXES)))
        self.trust: torch.Tensor
        self.register_buffer("trust", torch.ones(len(AXES)))
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _SOFTPLUS_ONE)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Sensitivities [..., 3], 1 on average, from hidden [..., H] and the shares (attention, MLP, bits/16) of the
        layers before, before [..., 3]."""
        dtype = self.read.weight.dtype
        normed = F.layer_norm(hidden.to(dtype), hidden.shape[-1:])
        x = self.read(torch.cat([normed, before.to(normed)], -1))
        sensitivity = F.softplus(self.head(self.dropout(F.gelu(x)))) / self.scale
        return 1 + self.trust * (sensitivity - 1)

    @classmethod
    def of(cls, weights: ValueWeights) -> "ValueNetwork":
        """The network of `weights`, ready to predict."""
        made = cls(weights.config)
        made.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in weights.arrays.items()})
        return made.eval()

    def weights(self) -> ValueWeights:
        """Its weights as arrays, which on the host share its memory."""
        return ValueWeights(self.config, {name: as_numpy(values) for name, values in self.state_dict().items()})
