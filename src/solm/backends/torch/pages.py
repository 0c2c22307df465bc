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


def _growing_page(
    signs: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, positions: torch.Tensor, page: int
) -> torch.Tensor:
    """Scores of the page that holds each query itself, bounded over its tokens so far: [N, H, G', Q, 1]."""
    slots = (positions // page * page)[..., None] + torch.arange(page, device=positions.device)  # [N, Q, page]
    index = slots.clamp(max=keys.shape[2] - 1).flatten(1)[:, None, :, None]
    tokens = keys.gather(2, index.expand(-1, keys.shape[1], -1, keys.shape[3])).unflatten(2, slots.shape[1:])
    later = (slots > positions[..., None])[:, None, :, :, None]
    low, high = tokens.masked_fill(later, torch.inf).amin(-2), tokens.masked_fill(later, -torch.inf).amax(-2)
    positive, negative = signs
    return (positive * high[:, :, None] + negative * low[:, :, None]).sum(-1, keepdim=True).float()


def select_pages(query: torch.Tensor, held: KeyValues, layout: Layout, plan: Plan) -> torch.Tensor:
    """The tokens that every step reads, causality not included: a mask [N, H, G', Q, T], of query [N, H, G, Q, D].

    A page's score is Σ_d max(q_d·low_d, q_d·high_d), split by the query's sign into two matrix products.
    """
    sparsity, page = plan.sparsity, plan.sparsity.page_size
    assert held.bounds is not None, "the cache keeps page bounds whenever a plan is sparse"
    signs, (low, high) = _group_queries(query, sparsity.select_per), held.bounds
    positive, negative = (sign.flatten(2, 3) for sign in signs)
    known = (positive @ high.mT + negative @ low.mT).float().unflatten(2, signs[0].shape[2:4])
    number = torch.arange(-(-layout.length // page), device=query.device)
    scores = torch.nn.functional.pad(known, (0, len(number) - known.shape[-1]))
    current = layout.positions[:, None, :, None] // page  # [N, 1, Q, 1]
    if sparsity.window == 0:
        grown = _growing_page(signs, held.keys, layout.positions, page)
        scores = torch.where((number == current)[:, :, None], grown, scores)
        candidate, always = number <= current, torch.zeros_like(number == current)
    else:
        start = plan.window_start[:, None, :, None] // page
        candidate = (number >= -(-sparsity.sinks // page)) & (number < start)
        always = ~candidate
    candidate, always = candidate[:, :, None], always[:, :, None]
    count = plan.pages.transpose(0, 1)[:, :, None, :, None]
    scores = scores.masked_fill(~candidate, -torch.inf)
    chosen = always | (largest(scores, count, keep_ties=sparsity.keep_ties) & candidate)
    return chosen.repeat_interleave(page, -1)[..., : layout.length]
