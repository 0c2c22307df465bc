"""Attention of N = S·K rows over S shared prefixes and the rows' own tokens, reading only what the plan allows."""

from dataclasses import dataclass

import torch

from solm.ops import kernels
from solm.ops.adaptive import Rule
from solm.ops.layout import Layout
from solm.ops.mass import select_mass
from solm.ops.pages import PageBounds, select_pages, select_recent, select_relevant
from solm.ops.plan import Plan


@dataclass(frozen=True)
class KeyValues:
    """keys, values: [S, H, K, T, D]; K is 1 for a prefix. bounds: of the keys' whole pages, where pages are used."""

    keys: torch.Tensor
    values: torch.Tensor
    bounds: PageBounds | None = None


def attend(
    query: torch.Tensor,
    prefix: KeyValues | None,
    own: KeyValues,
    layout: Layout,
    plan: Plan,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    rule: Rule | None = None,
) -> torch.Tensor:
    """Attention output [N, Hq, Q, Dv] of query [N, Hq, Q, D].

    rule: what decides instead of the plan's exact numbers, where something does.

    The prefix is read once for all K forks: their queries are folded into one matrix product. Softmax
    computes in float32 inside whatever the dtype.
    Sliding-window layers are never made sparser: they are bounded already. On a GPU the decode steps that
    `kernels.reads_pages` names run as Triton kernels that read the chosen pages only; everything else is masked.
    """
    sparse = plan.sparse_attention and sliding_window is None
    if sparse and rule is None and kernels.reads_pages(query, plan):
        from solm.ops.kernels.page_attention import attend_pages

        return attend_pages(query, prefix, own, layout, plan, scaling, softcap)
    rows, heads, length, size = query.shape
    kv_heads = own.keys.shape[1]
    folded = (query * scaling).reshape(layout.sequences, layout.forks, kv_heads, -1, length, size).transpose(1, 2)
    groups = folded.shape[3]

    own_scores = folded.flatten(3, 4) @ own.keys.mT
    parts = [own_scores.unflatten(3, (groups, length))]
    if prefix is not None:
        shared = folded.flatten(2, 4) @ prefix.keys[:, :, 0].mT
        parts.insert(0, shared.unflatten(2, (layout.forks, groups, length)))
    if softcap is not None:
        parts = [torch.tanh(part / softcap) * softcap for part in parts]

    see_prefix, see_own = layout.visible(sliding_window)
    masks: list[torch.Tensor | None] = [see_own[:, :, :, None]]
    if prefix is not None:
        masks.insert(0, None if see_prefix is None else see_prefix[:, :, :, None])
    if sparse and plan.semantics.criterion != "relevance":
        if plan.semantics.criterion == "pages":
            prefix_bounds = None if prefix is None else prefix.bounds
            assert own.bounds is not None, "the cache keeps page bounds whenever a plan is sparse"
            if rule is not None and rule.top_p:
                read_prefix, read_own = select_mass(folded, prefix_bounds, own.bounds, parts, masks, layout, plan, rule)
            else:
                read_prefix, read_own = select_pages(folded, prefix_bounds, own.bounds, own.keys, layout, plan)
        else:
            read_prefix, read_own = select_recent(layout, plan)
        reads = [read_own] if prefix is None else [read_prefix, read_own]
        masks = [_both(mask, read) for mask, read in zip(masks, reads, strict=True)]
    for part, mask in zip(parts, masks, strict=True):
        if mask is not None:
            _hide(part, mask)
    scores = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    if sparse and plan.semantics.criterion == "relevance":
        _hide(scores, select_relevant(scores, layout, plan))
    weights = torch.softmax(scores, -1)

    split = 0 if prefix is None else prefix.keys.shape[3]
    output = (weights[..., split:].flatten(3, 4) @ own.values).unflatten(3, (groups, length))
    if prefix is not None:
        shared = weights[..., :split].flatten(2, 4) @ prefix.values[:, :, 0]
        output = output + shared.unflatten(2, (layout.forks, groups, length))
    return output.transpose(1, 2).reshape(rows, heads, length, -1)


def _both(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """The conjunction of two masks of which either may allow everything."""
    if first is None or second is None:
        return first if second is None else second
    return first & second


def _hide(scores: torch.Tensor, visible: torch.Tensor) -> None:
    """Push scores outside the mask `visible` to the lowest value, in place. Adding a bias that is broadcast over a
    group's heads is 20 times faster on the CPU than `masked_fill_` with an irregular mask."""
    scores += (visible.to(scores.dtype) - 1) * torch.finfo(scores.dtype).max
