"""The experts of a mixture under a plan: how many of them a step visits, and what each reads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from solm.backends.torch.linears import high_half
from solm.backends.torch.plan import HIDDEN, INPUT, ActivePass, active_pass
from solm.backends.torch.select import fake_quantize, keep_channels, keep_where


def control(experts: nn.Module) -> Callable[[], object]:
    """Let the experts of a layer, one of transformers' modules, follow plans; returns what undoes it."""
    stock = experts.forward

    def forward(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        current = active_pass()
        if current is None or not (current.plan.sparse_mlp or current.plan.low_bits):
            return stock(hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
        current.follow(hidden_states.device)
        return _mix(experts, current, hidden_states, top_k_index, top_k_weights)

    experts.forward = forward  # type: ignore[method-assign]
    return partial(vars(experts).pop, "forward", None)


def _mix(experts: Any, current: ActivePass, x: torch.Tensor, index: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The sum [T, H] of the experts index [T, K] of x [T, H], the most likely first, each with its share [T, K]. The
    pass's N × Q steps are the T tokens."""
    index, share = _visited(experts, current, index, share)
    result, kept = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    x = _read(x, current, INPUT, torch.arange(len(x), device=x.device), kept)
    if current.plan.drops(INPUT) and current.plan.limits is not None:
        current.count(INPUT, kept.reshape(current.plan.bits.shape[:2]))
    kept.zero_()
    for expert in index[index >= 0].unique().tolist():
        token, place = torch.where(index == expert)
        gate = experts._apply_gate(_product(experts, current, INPUT, expert, x[token], token))
        gate = _read(gate, current, HIDDEN, token, kept)
        found = _product(experts, current, HIDDEN, expert, gate, token) * share[token, place, None]
        result.index_add_(0, token, found.to(result.dtype))
    if current.plan.drops(HIDDEN) and current.plan.limits is not None:
        current.count(HIDDEN, (kept / index.shape[-1]).reshape(current.plan.bits.shape[:2]))
    return result


def held(share: torch.Tensor) -> torch.Tensor:
    """Of the experts of tokens, the likeliest first, with shares share [T, K]: the part that each and all after it
    have together, float32, which falls from 1."""
    after = share.float().flip(-1).cumsum(-1).flip(-1)
    return after / after[:, :1]


def _visited(
    experts: Any, current: ActivePass, index: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts and shares [T, K] of steps that may visit fewer of them; -1 in place of the others. Where the router
    makes shares add up to 1, those that are left do so again."""
    if not current.plan.sparse_mlp or current.plan.sparsity.mlp_site != "experts":
        return index, share
    if current.plan.limits is None:
        left_out = torch.arange(index.shape[-1], device=index.device) >= current.plan.channels[0].reshape(-1, 1)
    else:
        left_out = held(share) < current.plan.limits[0].reshape(-1, 1)
        left_out[:, 0] = False
        current.count(0, (~left_out).double().mean(-1).reshape(current.plan.bits.shape[:2]))
    kept = share.masked_fill(left_out, 0)
    if getattr(experts.config, "norm_topk_prob", True):
        kept = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
    return index.masked_fill(left_out, -1), kept


def _read(x: torch.Tensor, current: ActivePass, site: int, token: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """What the steps token [T] read of x [T, D] at a site. Under thresholds the share is added to theirs, kept [N · Q]
    float64."""
    plan = current.plan
    if plan.drops(site):
        if plan.limits is None:
            x = keep_channels(x, plan.channels[site].flatten()[token, None])
        else:
            above = x.abs().float() >= plan.limits[site].flatten()[token, None]
            kept.index_add_(0, token, above.double().mean(-1))
            x = keep_where(x, above)
    if plan.low_bits and plan.sparsity.bits_site == "input":
        x = fake_quantize(x, plan.bits.flatten()[token, None], plan.sparsity.bits_group)
    return x


def _product(
    experts: Any, current: ActivePass, site: int, expert: int, x: torch.Tensor, token: torch.Tensor
) -> torch.Tensor:
    """The product of x [T, D] of the steps token [T] with one expert's matrix of a site, which some families store
    transposed or with a bias. Steps that read the upper bits of weights alone get theirs."""
    name, plan = ("gate_up_proj", "down_proj")[site], current.plan
    weight = getattr(experts, name)[expert]
    weight = weight.T if experts.is_transposed else weight
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    found, upper_only = nn.functional.linear(x, weight, bias), plan.upper_bits_only(site)
    if upper_only is None:
        return found
    assert plan.sparsity.bits_group is not None
    rounded = nn.functional.linear(x, high_half(weight, plan.sparsity.bits_group), bias)
    return torch.where(upper_only.flatten()[token, None], rounded, found)
