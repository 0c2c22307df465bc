"""Which cached tokens a step reads: page selection by upper bound (Quest, ICML 2024)."""

import torch

from solm.backends.torch.cache import KeyValues
from solm.backends.torch.plan import Layout, Plan
from solm.backends.torch.select import largest


def _group_queries(query: torch.Tensor, per: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive and negative parts of query [..., G, Q, D], summed over the G heads of a KV head unless per query
    head: [..., G' , Q, D] with G' = 1 or G. The bound is linear in each part, so summing first is exact."""
    positive, negative = query.clamp(min=0), query.clamp(max=0)
    if per == "kv_head":
        positive, negative = positive.sum(-3, keepdim=True), negative.sum(-3, keepdim=True)
    return positive, negative


def _page_scores(signs: tuple[torch.Tensor, torch.Tensor], bounds: torch.Tensor) -> torch.Tensor:
    """Σ_d max(q_d·low_d, q_d·high_d) of queries, by `_group_queries` [S, H, K, G', Q, D], for every page of bounds
    [2, S, H, K or 1, pages, D]: [S, H, K, G', Q, pages] float32.

    Split by the query's sign it is two matrix products; forks that share a prefix go through them together.
    """
    first = 2 if bounds.shape[3] == 1 else 3
    positive, negative = (sign.flatten(first, 4) for sign in signs)
    low, high = bounds.squeeze(3)  # of forks with pages of their own nothing is squeezed
    return (positive @ high.mT + negative @ low.mT).float().unflatten(first, signs[0].shape[first:5])


def _growing_page(
    signs: tuple[torch.Tensor, torch.Tensor], own_keys: torch.Tensor, layout: Layout, page: int
) -> torch.Tensor:
    """Scores of the page that holds each query itself, bounded over its tokens so far: [S, H, K, G', Q, 1]."""
    padded = torch.nn.functional.pad(own_keys, (0, 0, 0, -own_keys.shape[-2] % page))
    pages = padded.unflatten(-2, (-1, page))
    low, high = pages.cummin(-2).values.flatten(-3, -2), pages.cummax(-2).values.flatten(-3, -2)
    slot = layout.spread(layout.positions - layout.base[:, None])[..., None]
    slot = slot.expand(*own_keys.shape[:3], -1, own_keys.shape[-1])
    positive, negative = signs
    low, high = low.gather(-2, slot).unsqueeze(-3), high.gather(-2, slot).unsqueeze(-3)
    return (positive * high + negative * low).sum(-1, keepdim=True).float()


def select_pages(
    query: torch.Tensor, prefix: KeyValues | None, own: KeyValues, layout: Layout, plan: Plan
) -> torch.Tensor:
    """The tokens of prefix and own pages that every step reads, causality not included: a mask [S, H, K, G', Q, P + T].

    query: [S, H, K, G, Q, D]. prefix, own: with bounds.
    """
    sparsity, page = plan.sparsity, plan.sparsity.page_size
    assert own.bounds is not None, "the cache keeps page bounds whenever a plan is sparse"
    signs, whole = _group_queries(query, sparsity.select_per), own.bounds.shape[-2]
    growing = -(-layout.own_length // page) - whole
    scores = torch.nn.functional.pad(_page_scores(signs, own.bounds), (0, growing))
    if prefix is not None and prefix.bounds is not None:
        scores = torch.cat([_page_scores(signs, prefix.bounds), scores], -1)
    if sparsity.window == 0:
        number, exists = layout.slots(page)
        current = layout.spread(layout.positions)[..., None] // page
        held = torch.arange(scores.shape[-1], device=query.device) >= layout.prefix_length // page
        grown = _growing_page(signs, own.keys, layout, page)
        scores = torch.where(((number == current) & held)[:, :, :, None], grown, scores)
        candidate, always = exists & (number <= current), torch.zeros_like(exists)
    else:
        candidate, always = _candidates(layout, plan)
    candidate, always = candidate[:, :, :, None], always[:, :, :, None]
    count = plan.pages.unflatten(1, (layout.sequences, layout.forks)).transpose(0, 1)[:, :, :, None, :, None]
    scores = scores.masked_fill(~candidate, -torch.inf)
    chosen = always | (largest(scores, count, keep_ties=sparsity.keep_ties) & candidate)
    return chosen.repeat_interleave(page, -1)[..., : layout.prefix_length + layout.own_length]


def _candidates(layout: Layout, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages that may be chosen, and those of sinks and window that are always read: masks [S, 1, K, Q, pages].

    Kept for the pass: they follow from the lengths alone, so all layers share them, under whatever action.
    """
    if "candidates" not in layout.masks:
        sparsity, page = plan.sparsity, plan.sparsity.page_size
        number, exists = layout.slots(page)
        start = layout.spread(plan.window_start)[..., None] // page
        inside = (number >= -(-sparsity.sinks // page)) & (number < start)
        layout.masks["candidates"] = exists & inside, exists & ~inside
    return layout.masks["candidates"]  # type: ignore[no-any-return]
