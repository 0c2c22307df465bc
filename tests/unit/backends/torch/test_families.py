"""Samples of a model's weights, by which a policy is matched."""

import numpy as np
import torch
from torch import nn

from helpers.models import tiny_model
from solm.backends.torch.families import sample_layer


class Quantised(torch.Tensor):
    """Weights as torchao keeps them: an array only after they are dequantised."""

    def numpy(self):
        raise RuntimeError("not supported for tensor subclasses")

    def dequantize(self):
        return self.as_subclass(torch.Tensor)


def test_quantised_weights_are_sampled_as_the_numbers_they_stand_for():
    layer = tiny_model("llama", torch.float32).model.layers[0]
    rows = sample_layer(layer)
    down = layer.mlp.down_proj
    down.weight = nn.Parameter(down.weight.detach().as_subclass(Quantised), requires_grad=False)
    assert isinstance(down.weight[0].detach(), Quantised)
    for found, expected in zip(sample_layer(layer), rows, strict=True):
        assert np.array_equal(found, expected)
