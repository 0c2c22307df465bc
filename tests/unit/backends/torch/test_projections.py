"""Dropped inputs of attention's projections: hooked in every family, and masked as their weights' columns would be."""

import pytest
import torch

from helpers.models import keep_of, tiny_model, tokens
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.families import TESTED_FAMILIES, attention_sites, decoder_layers
from solm.core.sparsity import PERCENTAGES, SITES, ChannelThresholds, SparsityConfig

FALL = tuple(1e9 * (percent < PERCENTAGES - 1) for percent in range(PERCENTAGES))
ALL = (0.0,) * PERCENTAGES
"""Limits that no activation passes below a share of 1, and that all pass."""


def step(control, keep, *limits):
    """Logits [2, 3, V] and realised shares of three steps whose sites have these limits in all layers."""
    layers = control.shapes.layers
    thresholds = ChannelThresholds(limits=(limits,) * layers)
    sparsity = SparsityConfig(window=16, projection_part=0.2, input_part=0.6, thresholds=thresholds)
    session = control.session(sparsity)
    session.prefill(tokens(2, 30))
    found = session.extend(tokens(2, 3, seed=4), keep_of(keep, 2, 3))
    return found.logits, found.realised[..., 1]


@pytest.mark.parametrize("family", sorted(TESTED_FAMILIES))
def test_every_family_reads_projections_by_what_passes(family):
    control = TorchBackend(tiny_model(family))
    dense, whole = step(control, (1.0, 1.0, 16), *[ALL] * 4)
    assert (whole == 1).all()
    everything, whole = step(control, (1.0, 0.5, 16), *[ALL] * 4)
    torch.testing.assert_close(everything, dense, atol=1e-5, rtol=0)
    assert torch.allclose(whole, torch.ones_like(whole))
    for site in ("qkv", "out"):
        found, share = step(control, (1.0, 0.5, 16), *(FALL if name == site else ALL for name in SITES))
        assert (found - dense).abs().max() > 1e-3, site
        assert 0.8 < float(share[0, 0]) < 1
    # Without any input of the output projection only its bias is left of attention, whatever was read before.
    found, _ = step(control, (1.0, 0.5, 16), ALL, ALL, ALL, FALL)
    session = control.session(SparsityConfig(window=16))
    session.prefill(tokens(2, 30))
    handles = [
        attention_sites(layer)[1].register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]), *args[1:]))
        for layer in decoder_layers(control.model)
    ]
    expected = session.extend(tokens(2, 3, seed=4), keep_of((1.0, 1.0, 16), 2, 3)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for handle in handles:
        handle.remove()
    control.detach()
