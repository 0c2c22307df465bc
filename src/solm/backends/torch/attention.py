"""Attention of N = S·K rows over S shared prefixes and the rows' own tokens, reading only what the plan allows; and the
function that transformers calls for it: the model's own when dense, ours under a plan."""

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
    prefix: KeyValues | None,
    own: KeyValues,
    layout: Layout,
    plan: Plan,
    scoring: Scoring,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Attention output [N, Hq, Q, Dv] of query [N, Hq, Q, D].

    The prefix is read once for all K forks: their queries are folded into one matrix product, or, where there are so
    many that their scores outweigh it, a copy for every fork goes with them through torch's fused attention, which
    keeps no scores. Softmax computes in float32 inside whatever the dtype.
    Sliding-window layers are never made sparser: they are bounded already. On a GPU the decode steps that
    `kernels.reads_pages` names run as Triton kernels that read the chosen pages only; everything else is masked.
    """
    sparse = plan.sparse_attention and sliding_window is None
    if sparse and scoring.sinks is None and kernels.reads_pages(query, plan):
        from solm.backends.torch.triton.page_attention import attend_pages

        return attend_pages(query, prefix, own, layout, plan, scoring.scaling, scoring.softcap)
    rows, heads, length, size = query.shape
    kv_heads = own.keys.shape[1]
    folded = (
        (query * scoring.scaling).reshape(layout.sequences, layout.forks, kv_heads, -1, length, size).transpose(1, 2)
    )
    mask = layout.visible(sliding_window)[:, :, :, None]
    if sparse:
        mask = mask & select_pages(folded, prefix, own, layout, plan)
    if scoring.softcap is None and scoring.sinks is None and folded.shape[3] * length > 2 * size:
        output = _fused(folded, prefix, own, mask)
    else:
        output = _by_scores(folded, prefix, own, mask, scoring)
    return output.transpose(1, 2).reshape(rows, heads, length, -1)


def _by_scores(
    folded: torch.Tensor, prefix: KeyValues | None, own: KeyValues, mask: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Output [S, H, K, G, Q, Dv] of folded queries [S, H, K, G, Q, D] under a mask [S, H or 1, K, G or 1, Q, P + T] of
    the prefix's and own tokens."""
    forks, groups, length = folded.shape[2:5]
    scores = (folded.flatten(3, 4) @ own.keys.mT).unflatten(3, (groups, length))
    if prefix is not None:
        shared = folded.flatten(2, 4) @ prefix.keys[:, :, 0].mT
        scores = torch.cat([shared.unflatten(2, (forks, groups, length)), scores], -1)
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores += _bias(mask, scores.dtype)
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype).reshape(scores.shape[1], 1, groups, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1)
    weights = torch.softmax(scores, -1)
    if scoring.sinks is not None:
        weights = weights[..., :-1]
    split = 0 if prefix is None else prefix.keys.shape[3]
    output = (weights[..., split:].flatten(3, 4) @ own.values).unflatten(3, (groups, length))
    if prefix is not None:
        shared = weights[..., :split].flatten(2, 4) @ prefix.values[:, :, 0]
        output = output + shared.unflatten(2, (forks, groups, length))
    return output


def _fused(folded: torch.Tensor, prefix: KeyValues | None, own: KeyValues, mask: torch.Tensor) -> torch.Tensor:
    """The same by torch's fused attention: one call for each query head of a group, which share the mask, so that it
    needs no copy."""
    sequences, heads, forks, groups = folded.shape[:4]
    both = [own] if prefix is None else [prefix, own]
    keys, values = (
        torch.cat([part.expand(-1, -1, forks, -1, -1) for part in parts], 3).flatten(0, 1)
        for parts in ([part.keys for part in both], [part.values for part in both])
    )
    bias = _bias(mask, folded.dtype).expand(-1, heads, -1, -1, -1, -1).flatten(0, 1)
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            folded[:, :, :, group].flatten(0, 1), keys, values,
            attn_mask=bias[:, :, min(group, bias.shape[2] - 1)], scale=1.0,
        )
        for group in range(groups)
    ]  # fmt: skip
    return torch.stack(outputs, 2).unflatten(0, (sequences, heads))


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
    # Under a plan the masks come from the layout of the shared cache, which transformers does not know.
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
    own = layer.own(with_bounds=current.plan.sparse_attention and layer.sliding_window is None)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scaling, kwargs.get("softcap"), kwargs.get("s_aux"))
    output = attend(query, layer.prefix, own, current.layout, current.plan, scoring, layer.sliding_window)
    return output.transpose(1, 2).contiguous(), None
