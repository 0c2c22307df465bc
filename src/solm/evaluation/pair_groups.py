"""Which contexts and continuations are processed together: contexts that begin alike, rows that pairs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Controlled = Literal["answer", "question"]
"""What is under control: the continuation alone, after a context that was read densely, or also what is the context's
own, after the beginning that contexts share."""
Tokens = tuple[int, ...]
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context (at least one) and of its continuation (at least one)."""

_SHORTEST_PREFIX, _SMALLEST_CLUSTER = 32, 4
"""Tokens and contexts that make a shared prefill worth while."""


@dataclass
class Row:
    """One input that several pairs may share: continuations that differ in their last token alone."""

    inputs: Tokens
    pairs: list[int]


@dataclass
class Group:
    """What is read densely, and the rows that continue it, the shortest first."""

    context: Tokens
    rows: list[Row]


def clustered(pairs: Sequence[Pair], control: Controlled, limit: int | None) -> list[tuple[Tokens, list[Group]]]:
    """What is processed, by the beginning that contexts share.

    limit: tokens that a model's context holds; longer pairs lose their beginning.
    """
    known: dict[Tokens, list[tuple[int, Tokens]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        whole = tuple([*context, *continuation][-(limit + 1) if limit else 0 :])
        kept = max(1, len(whole) - len(continuation))
        # The last context token is a controlled step of its own; a context of one token has to be prefilled.
        first = max(1, kept - 1)
        known.setdefault(whole[:first], []).append((index, whole))
    found = []
    for prefix, contexts in _clusters(list(known)):
        groups = []
        for context in contexts:
            dense = context if control == "answer" else prefix or context[:1]
            rows: dict[Tokens, Row] = {}
            for index, whole in known[context]:
                inputs = whole[len(dense) : -1]
                rows.setdefault(inputs, Row(inputs, [])).pairs.append(index)
            groups.append(Group(dense, sorted(rows.values(), key=lambda row: len(row.inputs))))
        found.append((prefix, groups))
    return found


def _clusters(contexts: list[Tokens]) -> list[tuple[Tokens, list[Tokens]]]:
    """Contexts that begin alike, as few-shot prompts of one task do, with the prefix that they share; under an empty
    prefix the others."""
    alike: dict[Tokens, list[Tokens]] = {}
    for context in contexts:
        alike.setdefault(context[:_SHORTEST_PREFIX], []).append(context)
    found: list[tuple[Tokens, list[Tokens]]] = []
    others: list[Tokens] = []
    for some in alike.values():
        first, last = min(some), max(some)
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        # Every context keeps a token of its own.
        shared = min(shared, min(len(context) for context in some) - 1)
        if len(some) < _SMALLEST_CLUSTER or shared < _SHORTEST_PREFIX:
            others += some
        else:
            found.append((first[:shared], some))
    return [*found, ((), others)]
