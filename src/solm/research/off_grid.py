"""A model with its matrices rescaled: the same function, and weights that lie on no grid of 4 bits.

The embedded model was published in 4 bits, so that rounding it to 4 bits costs nothing, which is true of few models.
Here norms are multiplied into the matrices that read them, and every hidden channel of an MLP is scaled so that what
writes and what reads it are equally large (cross-layer equalisation: Nagel et al., arXiv 1906.04721). Then 4 bits cost
what they cost others.
"""

from pathlib import Path
from typing import Any

import torch

from solm.backends.torch.families import decoder_layers
from solm.runtime.language_model import LanguageModel


def write_off_grid(lm: LanguageModel, out: Path) -> float:
    """Write the model (of Llama's family, in float32) rescaled to `out`, with its tokenizer; `lm` is rescaled, too.

    Returns the largest change of a logit.
    """
    lm.detach()
    base, tokenizer = lm.model, lm.tokenizer
    assert tokenizer is not None
    ids = tokenizer("Rescaling must not change what a model says.", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(ids).logits
        for layer in decoder_layers(base):
            attention: Any = layer.self_attn
            mlp: Any = layer.mlp
            _fold(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
            _fold(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
            _equalise(mlp)
        change = float((base(ids).logits - before).abs().max())
    base.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return change


def _fold(norm: Any, *readers: Any) -> None:
    """Multiply a norm's weights into the input channels of the linear layers that read it."""
    for reader in readers:
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1)


def _equalise(mlp: Any) -> None:
    """Scale every channel between up and down so that both give it the same norm. A gate is not linear: left alone."""
    up, down = mlp.up_proj.weight, mlp.down_proj.weight
    scale = (up.norm(dim=1) / down.norm(dim=0)).sqrt()
    up.div_(scale[:, None])
    down.mul_(scale)
