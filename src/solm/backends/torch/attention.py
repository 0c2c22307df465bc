"""Attention of N rows over what they hold, reading only what the plan allows; and the function that transformers calls
for it: the model's own when dense, ours under a plan."""

import sys
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from solm.backends.torch import triton as kernels
from solm.backends.torch.cache import KeyValues
from solm.backends.torch.pages import select_pages
from solm.backends.torch.plan import Layout, Plan, active_pass
from solm.core.errors import UnsupportedModelError


class Scoring(NamedTuple):
    """How scores are made. scaling: of products. softcap: what they are softly kept below. sinks: a score of each query
    head [Hq] beside those of tokens, whose weight goes to no value."""

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None


def attend(
    query: torch.Tensor,
    held: KeyValues,
    layout: Layout,
    plan: Plan,
    scoring: Scoring,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Attention output [N, Hq, Q, Dv] of query [N, Hq, Q, D].

    Where there are many queries, they go through torch's fused attention, which keeps no scores. Softmax computes in
    float32 inside whatever the dtype.
    Sliding-window layers are never made sparser: they are bounded already. On a GPU the decode steps that
    `kernels.reads_pages` names run as Triton kernels that read the chosen pages only; everything else is masked.
    """
    sparse = plan.sparse_attention and sliding_window is None
    if sparse and scoring.sinks is None and kernels.reads_pages(query, plan):
        from solm.backends.torch.triton.page_attention import attend_pages

        return attend_pages(query, held, layout, plan, scoring.scaling, scoring.softcap)
    length, size = query.shape[2:]
    folded = (query * scoring.scaling).unflatten(1, (held.keys.shape[1], -1))
    mask = layout.visible(sliding_window)[:, :, None]
    if sparse:
        mask = mask & select_pages(folded, held, layout, plan)
    if scoring.softcap is None and scoring.sinks is None and folded.shape[2] * length > 2 * size:
        return _fused(folded, held, mask).flatten(1, 2)
    return _by_scores(folded, held, mask, scoring).flatten(1, 2)


def _by_scores(folded: torch.Tensor, held: KeyValues, mask: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Output [N, H, G, Q, Dv] of folded queries [N, H, G, Q, D] under a mask [N, H or 1, G or 1, Q, T]."""
    groups = folded.shape[2:4]
    scores = (folded.flatten(2, 3) @ held.keys.mT).unflatten(2, groups)
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores += _bias(mask, scores.dtype)
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype).reshape(scores.shape[1], groups[0], 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : held.keys.shape[2]]
    return (weights.flatten(2, 3) @ held.values).unflatten(2, groups)


def _fused(folded: torch.Tensor, held: KeyValues, mask: torch.Tensor) -> torch.Tensor:
    """The same by torch's fused attention: one call for each query head of a group, which share the mask, so that it
    needs no copy."""
    bias = _bias(mask, folded.dtype).expand(-1, folded.shape[1], -1, -1, -1)
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            query, held.keys, held.values, attn_mask=bias[:, :, min(group, bias.shape[2] - 1)], scale=1.0
        )
        for group, query in enumerate(folded.unbind(2))
    ]
    return torch.stack(outputs, 2)


def _bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What pushes scores outside the mask `visible` to the lowest value. Adding it, broadcast over a group's heads, is
    20 times faster on the CPU than `masked_fill_` with an irregular mask."""
    return visible.to(dtype).sub_(1).mul_(torch.finfo(dtype).max)


PREFIX = "solm_"


def register(base: str) -> str:
    """Register the controlled form of the attention implementation `base` and return its name.

    Both interfaces need the name: without a mask function transformers silently drops the padding mask.
    """
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, partial(_attention, base))
        AttentionMaskInterface.register(name, partial(_mask, base))
    return name


def _mask(base: str, *args: Any, **kwargs: Any) -> Any:
    # Under a plan the masks come from the layout of the cache, which transformers does not know.
    return None if active_pass() is not None else ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **kwargs)


def _attention(
    base: str, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    current = active_pass()
    if current is None:
        eager = base == "eager"
        stock = sys.modules[type(module).__module__].eager_attention_forward if eager else ALL_ATTENTION_FUNCTIONS[base]
        return stock(module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModelError(f"{type(module).__name__} uses position_bias, which controlled attention lacks")
    current.follow(query.device)
    layer, scaling = current.cache.layers[module.layer_idx], kwargs.get("scaling")
    held = layer.held(with_bounds=current.plan.sparse_attention and layer.sliding_window is None)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scaling, kwargs.get("softcap"), kwargs.get("s_aux"))
    output = attend(query, held, current.layout, current.plan, scoring, layer.sliding_window)
    return output.transpose(1, 2).contiguous(), None
