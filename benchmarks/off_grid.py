"""Write the embedded model with its matrices rescaled: the same function, and weights that lie on no grid of 4 bits.

    python benchmarks/off_grid.py --out runs/off-grid

The embedded model was published in 4 bits, so that rounding it to 4 bits costs nothing, which is true of few models.
Here norms are multiplied into the matrices that read them, and every hidden channel of an MLP is scaled so that what
writes and what reads it are equally large (cross-layer equalisation: Nagel et al., arXiv 1906.04721). Then 4 bits cost
what they cost others.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from solm.backends.torch.families import decoder_layers
from solm.backends.torch.load import load_base
from timing import MODEL


def fold(norm: Any, *readers: Any) -> None:
    """Multiply a norm's weights into the input channels of the linear layers that read it."""
    for reader in readers:
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1)


def equalise(mlp: Any) -> None:
    """Scale every channel between up and down so that both give it the same norm. A gate is not linear: left alone."""
    up, down = mlp.up_proj.weight, mlp.down_proj.weight
    scale = (up.norm(dim=1) / down.norm(dim=0)).sqrt()
    up.div_(scale[:, None])
    down.mul_(scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the model.")
    options = parser.parse_args()
    model, tokenizer = load_base(MODEL, "float32")
    assert tokenizer is not None
    ids = tokenizer("Rescaling must not change what a model says.", return_tensors="pt").input_ids
    with torch.no_grad():
        before = model(ids).logits
        for layer in decoder_layers(model):
            attention: Any = layer.self_attn
            fold(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
            fold(layer.post_attention_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj)
            equalise(layer.mlp)
        off = float((model(ids).logits - before).abs().max())
    print(f"largest change of a logit: {off:.1e}")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
