"""What of a model can be controlled, found in its structure: the MLP's sites and the attention layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from solm.backends.session import Capability
from solm.backends.torch.cache import PagedCache
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError, UnsupportedModelError

# Families that the tests run on every axis, with tiny random weights. Others may well work: `inspect` says.
TESTED_FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "granite",
    "qwen2_moe", "qwen3_moe", "olmoe", "mixtral", "granitemoe", "starcoder2", "gpt_neox", "gpt2", "phi", "cohere",
    "olmo", "glm", "exaone4", "ministral", "seed_oss", "helium", "glm4", "gpt_oss",
)  # fmt: skip

_MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
_OUT_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_DOWN_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "w2", "fc_out")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers; raises `UnsupportedModelError` where none has the configured length."""
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and not isinstance(module[0], nn.Linear):
            return module
    raise UnsupportedModelError(f"no list of {count} decoder layers in {type(model).__name__}")


def experts_of(layer: nn.Module) -> nn.Module | None:
    """The experts of a decoder layer, one module with the weights of all, which hooks replace; None where it has
    another MLP, or something beside experts, their router and an expert that all tokens visit in full."""
    mlp = _child(layer, _MLP_NAMES)
    experts = getattr(mlp, "experts", None)
    parts = {name for name, _ in mlp.named_children()} if mlp is not None else set()
    known_parts = {"experts", "gate", "router", "shared_expert", "shared_expert_gate"}
    alone = parts <= known_parts and not hasattr(layer, "shared_mlp")
    known = isinstance(experts, nn.Module) and hasattr(experts, "_apply_gate") and hasattr(experts, "gate_up_proj")
    return experts if known and alone else None


def mlp_sites(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The MLP of a decoder layer and its down projection, whose inputs hooks change; raises `UnsupportedModelError`
    with the reason where it has none we can hook."""
    mlp = _child(layer, _MLP_NAMES)
    if mlp is None:
        raise UnsupportedModelError(f"{type(layer).__name__} has no MLP module of its own")
    if any("expert" in name for name, _ in mlp.named_modules()) or hasattr(mlp, "experts"):
        raise UnsupportedModelError("these layers have experts in place of one MLP")
    down = _child(mlp, _DOWN_NAMES)
    if down is None:
        raise UnsupportedModelError(f"no down projection among the children of {type(mlp).__name__}")
    return mlp, down


def _gated(mlp: nn.Module) -> bool:
    linears = [child for child in mlp.children() if isinstance(child, nn.Linear | Conv1D)]
    names = [name for name, _ in mlp.named_children()] + [name for name, _ in mlp.named_parameters(recurse=False)]
    return len(linears) > 2 or any("gate_up" in name for name in names)


def attention_sites(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The attention of a decoder layer, which reads the layer's normed stream as its first argument or
    ``hidden_states``, and its output projection; raises `UnsupportedModelError` with the reason where we can hook
    none."""
    attention = _child(layer, _ATTENTION_NAMES)
    if attention is None:
        raise UnsupportedModelError(f"{type(layer).__name__} has no attention module of its own")
    out = _child(attention, _OUT_NAMES)
    if out is None:
        raise UnsupportedModelError(f"no output projection among the children of {type(attention).__name__}")
    return attention, out


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def sample_layer(layer: nn.Module) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The middle row of a layer's down projection and the first of its norms by name; None where they are no floats or
    not in memory."""
    try:
        down = getattr(mlp_sites(layer)[1], "weight", None)
    except UnsupportedModelError:
        down = None
    norms = [part for part in layer.named_parameters() if part[0].endswith("norm.weight") and part[1].dim() == 1]
    norm = min(norms, key=lambda found: found[0])[1] if norms else None
    row = None if down is None or down.dim() != 2 else down[len(down) // 2]
    return _floats(row), _floats(norm)


def _floats(values: torch.Tensor | None) -> np.ndarray | None:
    known = values is not None and values.is_floating_point() and not values.is_meta
    # dequantize: no array can be made of torchao's weights otherwise; of others it makes float32
    return values.detach().cpu().dequantize().float().numpy() if known else None  # type: ignore[union-attr]


def model_shapes(config: PretrainedConfig, gated: bool) -> ModelShapes:
    """The sizes that costs depend on, from any family's configuration."""
    text = config.get_text_config(decoder=True)
    heads, used = text.num_attention_heads, getattr(text, "num_experts_per_tok", None)
    intermediate = getattr(text, "moe_intermediate_size", None) if used else None
    return ModelShapes(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=intermediate
        or getattr(text, "intermediate_size", None)
        or getattr(text, "n_inner", None)
        or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        gated=gated,
        experts_used=used or 1,
        shared=getattr(text, "shared_expert_intermediate_size", None) or 0,
    )


def probe(model: PreTrainedModel) -> Capability:
    """What can be controlled on `model`, from its structure alone (a model on the meta device will do)."""
    reasons: dict[str, str] = {}
    gated, sliding, shapes = False, list[int](), None
    with _noted(reasons, "mlp", "bits"):
        experts = [one for one in map(experts_of, decoder_layers(model)) if one is not None]
        whole = len(experts) == len(decoder_layers(model))
        mlps = experts if whole else [mlp for mlp, _ in map(mlp_sites, decoder_layers(model))]
        gated = _gated(mlps[0])
    with _noted(reasons, "projections"):
        for layer in decoder_layers(model):
            attention_sites(layer)
    with _noted(reasons, "attention"):
        layers = PagedCache.empty(model.config, page_size=16, capacity=0).layers
        sliding = [index for index, layer in enumerate(layers) if layer.is_sliding]
        if not getattr(model, "_supports_attention_backend", False):
            raise UnsupportedModelError(f"{type(model).__name__} does not call transformers' attention interface")
        if model.get_output_embeddings() is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no output embeddings to read hidden states from")
    try:
        shapes = model_shapes(model.config, gated)
    except (AttributeError, TypeError) as error:
        reasons.setdefault("attention", f"its configuration lacks a size: {error}")
    family = model.config.model_type
    return Capability(family, family in TESTED_FAMILIES, shapes, reasons, tuple(sliding))


@contextmanager
def _noted(reasons: dict[str, str], *axes: str) -> Iterator[None]:
    """Note the error of a block as the reason why `axes` cannot be controlled."""
    try:
        yield
    except SolmError as error:
        reasons.update(dict.fromkeys(axes, str(error)))
