"""Which cached tokens a step reads: page selection by upper bound (Quest, ICML 2024)."""

import torch

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
    query: torch.Tensor,
    prefix_bounds: torch.Tensor | None,
    own_bounds: torch.Tensor,
    own_keys: torch.Tensor,
    layout: Layout,
    plan: Plan,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Masks of the pages every step reads.

    Args:
        query: [S, H, K, G, Q, D]. prefix_bounds: [2, S, H, 1, nP, D] or None. own_bounds: [2, S, H, K, nO, D], whole
            pages.
        own_keys: [S, H, K, T, D].

    Returns:
        Masks over the prefix's tokens [S, H, K, G', Q, P] (or None) and own tokens [S, H, K, G', Q, T], causality
        not included.
    """
    sparsity, page = plan.sparsity, plan.sparsity.page_size
    signs, whole = _group_queries(query, sparsity.select_per), own_bounds.shape[-2]
    prefix_pages = 0 if prefix_bounds is None else prefix_bounds.shape[-2]
    own_pages = -(-layout.own_length // page)
    parts = [] if prefix_bounds is None else [_page_scores(signs, prefix_bounds)]
    own_scores = _page_scores(signs, own_bounds)
    parts.append(torch.nn.functional.pad(own_scores, (0, own_pages - whole)))
    scores = torch.cat(parts, -1)

    if sparsity.window == 0:
        number, exists = page_numbers(layout, prefix_pages, own_pages, page)
        current = layout.spread(layout.positions)[:, :, :, None, :, None] // page
        grown = _growing_page(signs, own_keys, layout, page)
        held = torch.arange(prefix_pages + own_pages, device=query.device) >= prefix_pages
        scores = torch.where((number == current) & held, grown, scores)
        candidate, always = exists & (number <= current), torch.zeros_like(exists)
    else:
        candidate, always = candidates(layout, plan, prefix_pages, own_pages)
    count = layout.spread_heads(plan.pages)[:, :, :, None, :, None]
    scores = scores.masked_fill(~candidate, -torch.inf)
    chosen = always | (largest(scores, count, keep_ties=sparsity.keep_ties) & candidate)
    return token_masks(chosen, prefix_pages, layout, page)


def page_numbers(layout: Layout, prefix_pages: int, own_pages: int, page: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of every page of prefix and own tokens in its sequence [S, 1, K, 1, 1, pages], and whether it exists."""
    base_page = layout.spread(layout.base[:, None, None])[:, :, :, None] // page
    index = torch.arange(prefix_pages + own_pages, device=layout.positions.device)
    in_prefix = index < prefix_pages
    return torch.where(in_prefix, index, index - prefix_pages + base_page), ~in_prefix | (index < base_page)


def candidates(layout: Layout, plan: Plan, prefix_pages: int, own_pages: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages that may be chosen, and those of sinks and window that are always read: masks [S, 1, K, 1, Q, pages].

    Kept for the pass: they follow from the lengths alone, so all layers share them, under whatever action.
    """
    if (prefix_pages, own_pages) not in layout.candidates:
        sparsity, page = plan.sparsity, plan.sparsity.page_size
        number, exists = page_numbers(layout, prefix_pages, own_pages, page)
        start = layout.spread(plan.window_start)[:, :, :, None, :, None] // page
        sinks = -(-sparsity.sinks // page)
        inside = (number >= sinks) & (number < start)
        layout.candidates[prefix_pages, own_pages] = exists & inside, exists & ~inside
    return layout.candidates[prefix_pages, own_pages]


def token_masks(
    pages: torch.Tensor, prefix_pages: int, layout: Layout, page: int
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """A mask of pages [..., pages] as masks over the prefix's tokens [..., P] (None without one) and own ones."""
    own = pages[..., prefix_pages:].repeat_interleave(page, -1)[..., : layout.own_length]
    if not prefix_pages:
        return None, own
    return pages[..., :prefix_pages].repeat_interleave(page, -1), own
