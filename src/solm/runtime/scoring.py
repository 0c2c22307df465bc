"""Biases and penalties: what changes logits before a token is chosen, in NumPy."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from solm.core.arrays import Array, as_numpy
from solm.core.errors import SolmError

REPLY_PENALTIES = ("presence_penalty", "frequency_penalty")
"""Options that transformers lacks: subtracted from the logits of tokens that the reply has, once or per occurrence."""


class Scoring(Protocol):
    """What tokens are chosen by."""

    def scores(self, logits: Array) -> np.ndarray:
        """[V] float32 from logits [V]; minus infinity for a token that cannot be chosen."""

    def said(self, token: int) -> None:
        """`token` was chosen."""


class Penalised:
    """What `rule` makes (None: nothing) of changed logits, in this order:

    biases: added to the logits of their tokens. repetition: logits of tokens of ids [1, C] and of tokens said since are
    divided by it above 0, multiplied by it below. presence, frequency: subtracted from the logits of tokens said since,
    once, and once per occurrence. The first two as transformers' processors for sequence_bias and repetition_penalty
    do them, the others as OpenAI's API defines them.
    """

    def __init__(
        self,
        ids: Array,
        rule: Scoring | None,
        repetition: float = 1.0,
        presence: float = 0.0,
        frequency: float = 0.0,
        biases: Mapping[int, float] | None = None,
    ):
        self.rule, self._repetition = rule, np.float32(repetition)
        self._presence, self._frequency = np.float32(presence), np.float32(frequency)
        self._biased = np.array(list(biases or {}), np.int64)
        self._biases = np.array(list((biases or {}).values()), np.float32)
        self._known = np.unique(as_numpy(ids)) if repetition != 1 else np.zeros(0, np.int64)
        self._said, self._counts = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._places: dict[int, int] = {}
        """Of the tokens in `_said`."""

    def scores(self, logits: Array) -> np.ndarray:
        changed = self.changed(logits)
        return changed if self.rule is None else self.rule.scores(changed)

    def changed(self, logits: Array) -> np.ndarray:
        """Logits [V] before the rule, float32."""
        scores = as_numpy(logits).astype(np.float32)
        scores[self._biased] += self._biases
        known = scores[self._known]
        scores[self._known] = np.where(known < 0, known * self._repetition, known / self._repetition)
        scores[self._said] -= self._frequency * self._counts + self._presence
        return scores

    def said(self, token: int) -> None:
        """`token` was chosen."""
        if self._repetition != 1:
            self._known = np.union1d(self._known, token)
        if token not in self._places:
            self._places[token] = len(self._said)
            self._said, self._counts = np.append(self._said, token), np.append(self._counts, np.float32(0))
        self._counts[self._places[token]] += 1
        if self.rule is not None:
            self.rule.said(token)


def changes(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without those that `Penalised` carries out, and what it is given for them; values that only transformers
    can refuse, and biases of several tokens, stay. Raises `SolmError` for a penalty that is no finite number."""
    rest, change = dict(options), dict[str, Any]()
    penalty: Any = rest.get("repetition_penalty")
    biases: Any = rest.get("sequence_bias")
    for name in REPLY_PENALTIES:
        value = rest.pop(name, None)
        if value is None or value == 0:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise SolmError(f"generation option {name!r} must be a finite number, got {value!r}")
        change[name.removesuffix("_penalty")] = value
    if biases is not None:
        if not isinstance(biases, dict) or not all(
            type(key) is tuple and len(key) == 1 and type(key[0]) is int and key[0] >= 0 and type(value) is float
            for key, value in biases.items()
        ):
            return rest, change  # transformers adds them before it penalises repetitions
        change["biases"] = {key[0]: value for key, value in rest.pop("sequence_bias").items()}
    if type(penalty) in (int, float) and penalty > 0 and penalty != 1:
        change["repetition"] = rest.pop("repetition_penalty")
    return rest, change
