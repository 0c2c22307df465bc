"""Log-probabilities and divergences of logits, without a float32 copy of all of them."""

import torch
from torch.nn import functional as F

LOGITS_AT_ONCE = 1 << 25
"""Numbers of logits of a pass that only measures: 128 MiB in float32. With half as many, it takes a tenth longer."""
_LOGITS_PER_SLICE = 8  # a float32 slice that stays in the last-level cache


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p(tokens) under logits [..., V], in float32: [...], for tokens [...] of any integers. Sliced, so that no
    float32 copy of all logits exists."""
    slices = logits.flatten(0, -2).split(_LOGITS_PER_SLICE)
    targets = tokens.to(logits.device, torch.int64).flatten().split(_LOGITS_PER_SLICE)
    parts = [
        -F.cross_entropy(part.float(), target, reduction="none") for part, target in zip(slices, targets, strict=True)
    ]
    return torch.cat(parts).view(tokens.shape)


def divergences(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL in nats from reference [M, Q, V] to logits [M * R, Q, V], of R adjacent forks of each: [M * R, Q] float32,
    sliced likewise."""
    forks, rows = len(logits) // len(reference), []
    step = max(1, _LOGITS_PER_SLICE // forks)
    for ours, theirs in zip(logits.split(forks), reference, strict=True):
        parts = []
        for part, known in zip(ours.split(step, 1), theirs.split(step), strict=True):
            expected = known.float().log_softmax(-1)
            parts.append(torch.einsum("qv,rqv->rq", expected.exp(), expected - part.float().log_softmax(-1)))
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows).clamp(min=0)  # rounding
