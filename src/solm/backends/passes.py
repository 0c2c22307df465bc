"""What goes into one pass of the model in mid-way, and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

_LOGITS_PER_SLICE = 8  # a float32 slice that stays in the last-level cache


@dataclass(frozen=True)
class Turn:
    """A second action, chosen in mid-pass, for the layers from `layer` on.

    choose: from the residual stream [N, Q, H] that enters `layer` to keep [N, Q, 3].
    """

    layer: int
    choose: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Extended:
    """What one pass over Q known tokens gave: logits after every one of them [N, Q, V], hidden [N, Q, H], realised
    shares [N, Q, 3] float64, controllable [N, Q]."""

    logits: torch.Tensor
    hidden: torch.Tensor
    realised: torch.Tensor
    controllable: torch.Tensor


@dataclass(frozen=True)
class Scored:
    """The same, for known next tokens: log-probabilities [N, Q] in place of logits."""

    log_probabilities: torch.Tensor
    hidden: torch.Tensor
    realised: torch.Tensor
    controllable: torch.Tensor


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p(tokens) under logits [..., V], in float32: [...]. Sliced, so that no float32 copy of all logits exists."""
    slices = logits.flatten(0, -2).split(_LOGITS_PER_SLICE)
    targets = tokens.to(logits.device).flatten().split(_LOGITS_PER_SLICE)
    parts = [
        -F.cross_entropy(part.float(), target, reduction="none") for part, target in zip(slices, targets, strict=True)
    ]
    return torch.cat(parts).view(tokens.shape)


def divergences(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL in nats of what logits [M, R, V] say from what reference [M, V] says: [M, R] float32, sliced likewise."""
    step = max(1, _LOGITS_PER_SLICE // logits.shape[1])
    parts = []
    for ours, theirs in zip(logits.split(step), reference.split(step), strict=True):
        known = theirs.float().log_softmax(-1)
        parts.append(torch.einsum("mv,mrv->mr", known.exp(), known[:, None] - ours.float().log_softmax(-1)))
    return torch.cat(parts).clamp(min=0)  # rounding
