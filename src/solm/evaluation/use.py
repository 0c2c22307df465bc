"""What a policy did: how often it took each level, by position and token class, and a few texts token by token."""

from itertools import chain
from typing import TypedDict

import torch

from solm.core.actions import AXES
from solm.evaluation.result import ActionUse, Example, ExampleToken, Use
from solm.runtime.language_model import LanguageModel

_STRETCH = 16
"""Positions that are counted together."""
CLASSES = ("begins a word", "goes on in a word", "number", "punctuation", "space or line end", "special")


class Taken(TypedDict):
    """The policy's actions on a batch, one row per text and budget (budgets alternate) and one number per step; of the
    first rows also the nats of every next token and the cost of every step."""

    actions: list[list[int]]
    nats: list[list[float]]
    cost: list[list[float]]


def token_class(text: str, special: bool = False) -> str:
    """Which of `CLASSES` a token is, by its text; a token of several kinds is what its first visible sign is."""
    stripped = text.strip()
    if special:
        return "special"
    if not stripped:
        return "space or line end"
    if stripped[0].isdigit():
        return "number"
    if stripped[0].isalpha():
        return "begins a word" if text[0].isspace() else "goes on in a word"
    return "punctuation"


def action_use(
    lm: LanguageModel, taken: list[Taken], tokens: torch.Tensor, budgets: tuple[float, ...], context: int
) -> list[ActionUse]:
    """Levels counted over the steps that could be controlled on their axis; nothing without a policy or tokenizer.

    tokens: [texts, T+1] of which the first T are processed under control, after `context` others.
    """
    if not taken or lm.tokenizer is None:
        return []
    actions = torch.tensor(list(chain.from_iterable(part["actions"] for part in taken)))
    levels = lm.space.level_table[actions].view(len(tokens), len(budgets), -1, 3)
    steps = levels.shape[2]
    counted = lm.sparsity.controllable(context + 1 + torch.arange(steps))
    known = {token: CLASSES.index(_class_of(lm, token)) for token in tokens[:, :steps].unique().tolist()}
    kinds = torch.tensor([[known[token] for token in row] for row in tokens[:, :steps].tolist()])
    stretch = (torch.arange(steps) // _STRETCH).expand_as(kinds)
    found = []
    for index, budget in enumerate(budgets):
        some = levels[:, index]

        def count(group: str, inside: torch.Tensor) -> Use:
            counts = [
                some[..., axis][inside & counted[:, axis]].bincount(minlength=size).tolist()  # noqa: B023
                for axis, size in enumerate(lm.space.shape)
            ]
            return Use(group=group, counts=dict(zip(AXES, counts, strict=True)))

        positions = [
            count(f"{start + 1} to {min(start + _STRETCH, steps)}", stretch == start // _STRETCH)
            for start in range(0, steps, _STRETCH)
        ]
        classes = [count(name, kinds == kind) for kind, name in enumerate(CLASSES)]
        found.append(ActionUse(budget=budget, positions=positions, classes=[use for use in classes if _steps(use)]))
    return found


def _steps(use: Use) -> int:
    return max(sum(counts) for counts in use.counts.values())


def _class_of(lm: LanguageModel, token: int) -> str:
    assert lm.tokenizer is not None
    return token_class(str(lm.tokenizer.decode([token])), token in lm.tokenizer.all_special_ids)


def examples(lm: LanguageModel, taken: list[Taken], tokens: torch.Tensor, budgets: tuple[float, ...]) -> list[Example]:
    """The first texts, as many as `taken` has nats of; arguments as for `action_use`."""
    if not taken or lm.tokenizer is None:
        return []
    first, found = taken[0], []
    for row, (nats, cost) in enumerate(zip(first["nats"], first["cost"], strict=True)):
        text, budget = tokens[row // len(budgets)].tolist(), budgets[row % len(budgets)]
        steps = zip(text, first["actions"][row], cost, nats, strict=False)
        shown = [
            ExampleToken(
                text=str(lm.tokenizer.decode([token])), action=lm.space.actions[action].tag, cost=round(share, 4),
                nats=round(lost, 4),
            )
            for token, action, share, lost in steps
        ]  # fmt: skip
        found.append(Example(budget=budget, tokens=shown))
    return found
