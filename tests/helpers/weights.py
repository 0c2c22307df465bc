"""Weights that lie on the grid of a 4-bit file."""

import torch

# Outputs in 64s and inputs in 32s, with a last 64 outside of the 128s.
GRID_SIZES = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def on_grid(model, steps=15):
    """The model with every matrix but its embedding rounded to 4 bits, in groups of 32, as in a Q4_1 file."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded(module.weight.data, steps)
    return model


def rounded(weight, steps=15):
    groups = weight.unflatten(1, (-1, 32))
    low = groups.amin(-1, keepdim=True).half().float()
    step = ((groups.amax(-1, keepdim=True) - low) / steps).half().float()
    return (low + step * ((groups - low) / step).round().clamp(0, steps)).flatten(1)
