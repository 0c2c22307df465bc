"""Top-p attention: pages are read until the softmax mass that they are estimated to hold reaches p."""

import math

import torch

from solm.backends.torch.adaptive import Rule
from solm.backends.torch.layout import Layout
from solm.backends.torch.pages import PageBounds, candidates, token_masks
from solm.backends.torch.plan import Plan
from solm.backends.torch.select import largest


def select_mass(
    query: torch.Tensor,
    prefix_bounds: PageBounds | None,
    own_bounds: PageBounds,
    logits: list[torch.Tensor],
    visible: list[torch.Tensor | None],
    layout: Layout,
    plan: Plan,
    rule: Rule,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Masks of the pages every step reads, as `select_pages` returns them; the plan's κ is p, and `rule` counts.

    Sinks and window are always read, so their mass is known; that of other pages is estimated from their bounds alone.
    Pages are taken by falling mass, a group of query heads together as in `select_pages`. The idea is that of Twilight
    (arXiv 2502.02770), which estimates from 4-bit keys.

    Args:
        query: [S, H, K, G, Q, D], scaled. logits: of prefix (where there is one) and own tokens [S, H, K, G, Q, ·].
        visible: causal masks that broadcast to those, None where everything is seen.
    """
    page = plan.sparsity.page_size
    prefix_pages = 0 if prefix_bounds is None else prefix_bounds.low.shape[-2]
    own_pages = -(-layout.own_length // page)
    parts = [] if prefix_bounds is None else [_log_mean(query, prefix_bounds)]
    own = _log_mean(query, own_bounds)
    parts.append(torch.nn.functional.pad(own, (0, own_pages - own.shape[-1])))
    candidate, always = candidates(layout, plan, prefix_pages, own_pages)

    seen = [mask for mask in token_masks(always, prefix_pages, layout, page) if mask is not None]
    seen = [mask if sees is None else mask & sees for mask, sees in zip(seen, visible, strict=True)]
    known = torch.cat([part.masked_fill(~mask, -torch.inf) for part, mask in zip(logits, seen, strict=True)], -1)
    guessed = (torch.cat(parts, -1) + math.log(page)).masked_fill(~candidate, -torch.inf)
    mass = torch.cat([known.logsumexp(-1, keepdim=True).float(), guessed], -1).softmax(-1)
    if plan.sparsity.select_per == "kv_head":
        mass = mass.mean(3, keepdim=True)
    held, mass = mass[..., :1], mass[..., 1:]

    ordered = mass.sort(dim=-1, descending=True).values
    p = layout.spread(plan.keep[..., 0].float())[:, :, :, None, :, None]
    wanted = ((held + ordered.cumsum(-1) - ordered < p) & (ordered > 0)).sum(-1, keepdim=True)
    wanted = torch.where(p >= 1, candidate.sum(-1, keepdim=True), wanted)
    chosen = largest(mass.masked_fill(~candidate, -torch.inf), wanted) & candidate
    read = sum(mask.sum(-1) for mask in seen) + page * chosen.sum(-1)
    share = (read / layout.spread(layout.positions + 1)[:, :, :, None].double()).mean((1, 3))
    rule.attention.append(share.flatten(0, 1))
    return token_masks(always | chosen, prefix_pages, layout, page)


def _log_mean(query: torch.Tensor, bounds: PageBounds) -> torch.Tensor:
    """log of the mean of exp(q·k) over a page, were its keys spread evenly between the bounds [..., pages, D], up to
    second order: q·middle + Σ (q_d·width_d)² / 24. Of query [..., G, Q, D]: [..., G, Q, pages] float32."""
    middle, width = (bounds.low + bounds.high) / 2, bounds.high - bounds.low
    first = query @ middle.unsqueeze(-3).mT
    second = query**2 @ (width**2).unsqueeze(-3).mT
    return first.float() + second.float() / 24
