"""Counterfactual samples: what random actions cost, token by token, against the dense run of the same text."""

from dataclasses import dataclass

import torch

from solm.backends.logits import divergences, log_probabilities
from solm.backends.session import SplitSchedule
from solm.core.actions import DENSE, ActionSpace
from solm.runtime.language_model import LanguageModel

_TILT = 3.0
"""Largest difference of log-odds between the lowest and the highest level of an axis in one row."""


@dataclass(frozen=True)
class Samples:
    """R random schedules for each of W texts, T steps each.

    hidden: [W, R, T, H] bfloat16, the residual stream that enters the decision layer. before, after: [W, R, T, 3]
    uint8, levels of the grid for the layers before it and from it on. cost: [W, R, T] float32 nats, the log-probability
    of the next token in the dense run less that under the schedule. divergence: [W, R, T] float32 nats, its expectation
    over the next tokens that the dense run predicts (KL). dense: [W, T] float32, log-probability in the dense run.
    tokens: [W, T] int32, the token that the step processes.
    """

    hidden: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    cost: torch.Tensor
    divergence: torch.Tensor
    dense: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def join(cls, parts: "list[Samples]") -> "Samples":
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__})


def draw_levels(
    grid: ActionSpace, texts: int, rows: int, steps: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random levels before the decision layer and from it on, [texts, rows, steps, 3] uint8 each.

    In three of four texts each row varies one axis, whose effect is then not covered by that of others; in the rest all
    axes vary. How often a row takes low levels is drawn per row, so that every budget occurs.
    """
    axes = [axis for axis, size in enumerate(grid.shape) if size > 1]
    joint = torch.rand(texts, generator=generator) < (0.25 if len(axes) > 1 else 0.0)
    number = torch.randint(len(axes), (texts, 1), generator=generator) + torch.arange(rows)
    alone = torch.tensor(axes)[number % len(axes)]
    drawn = []
    for axis, size in enumerate(grid.shape):
        rank = torch.linspace(0, 1, size)
        tilt = (torch.rand(texts, rows, 1, generator=generator) * 2 - 1) * _TILT
        weights = (tilt * rank).exp().flatten(0, 1)
        levels = torch.multinomial(weights, 2 * steps, replacement=True, generator=generator)
        varied = joint[:, None] | (alone == axis)
        drawn.append(torch.where(varied.flatten()[:, None], levels, size - 1).view(texts, rows, 2, steps))
    levels = torch.stack(drawn, -1).to(torch.uint8)
    return levels[:, :, 0], levels[:, :, 1]


def collect_samples(
    lm: LanguageModel,
    windows: torch.Tensor,
    context: int,
    layer: int,
    before: torch.Tensor,
    after: torch.Tensor,
    grid: ActionSpace,
) -> Samples:
    """Score windows [W, context + T + 1] densely and under levels before, after [W, R, T, 3] of `grid`.

    One prefill per text, and one pass for its dense run and its R schedules.
    """
    texts, rows, steps = before.shape[:3]
    session = lm.session(capacity=context)
    session.prefill(windows[:, :context])
    forked = session.fork(rows + 1, capacity=steps + lm.sparsity.page_size)
    dense = torch.tensor(DENSE, dtype=torch.float64).expand(texts, 1, steps, 3)
    first, second = (torch.cat([dense, keep_of(levels, grid)], 1).flatten(0, 1) for levels in (before, after))
    tokens = windows[:, context:]
    known = tokens.repeat_interleave(rows + 1, 0)
    found = forked.extend(known[:, :-1], SplitSchedule(layer, first, second))
    assert found.stream is not None
    seen = found.stream.unflatten(0, (texts, rows + 1))[:, 1:].to("cpu", torch.bfloat16)
    scores = log_probabilities(found.logits, known[:, 1:]).float().cpu().unflatten(0, (texts, rows + 1))
    split = found.logits.unflatten(0, (texts, rows + 1))
    distances = torch.stack([divergences(text[1:].transpose(0, 1), text[0]).T.cpu() for text in split])
    return Samples(
        seen, before, after, scores[:, :1] - scores[:, 1:], distances, scores[:, 0], tokens[:, :-1].to(torch.int32)
    )


def keep_of(levels: torch.Tensor, grid: ActionSpace) -> torch.Tensor:
    """Levels [..., 3] of `grid` as numbers (κ, ρ, bits): [..., 3] float64."""
    axes = (grid.attention, grid.mlp, grid.bits)
    return torch.stack(
        [torch.tensor(axis, dtype=torch.float64)[levels[..., index].long()] for index, axis in enumerate(axes)], -1
    )
