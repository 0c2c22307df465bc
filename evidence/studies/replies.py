"""Replies to many prompts under one arm, decoded in batches, and how an arm predicts a reply of the dense model."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from evidence.studies.problems import Problem
from solm.backends.session import Session
from solm.core.actions import AXES
from solm.core.budget import Budget
from solm.core.sparsity import SparsityConfig
from solm.evaluation.arms import Arm
from solm.runtime.batch import Row, decode
from solm.runtime.language_model import LanguageModel, check_length
from solm.runtime.reply import TextStream
from solm.runtime.sampling import Sampler

_AFTER = 4
"""Last tokens of a prompt, which every reply reads anew: its first logits come from them."""


class Made(TypedDict):
    """What an arm made of a prompt. tokens: of the reply. ended: whether it ended by itself. steps: that spent."""

    metrics: dict[str, float]
    tokens: int
    ended: bool
    steps: int
    spent: dict[str, float]


def spent_by(made: Made) -> Budget:
    """The averages that a reply spent, as the budget of another arm."""
    return Budget.of([made["spent"][axis] for axis in AXES])


class Prompts:
    """Token ids [1, C] of prompts, each read once, densely, for all arms."""

    def __init__(self, lm: LanguageModel, ids: Sequence[np.ndarray]):
        self.lm, self.ids, self._measured = lm, ids, lm.budgets().timings
        self._read: dict[int, Session] = {}
        self._dense: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def session(self, number: int, room: int, sparsity: SparsityConfig | None) -> Session:
        """A session of one row with room for `room` more tokens that has read all but the last tokens of a prompt."""
        ids = self.ids[number]
        most = ids.shape[1] - _AFTER
        if most < 1:
            return self.lm.session(ids.shape[1] + room, sparsity)
        if number not in self._read:
            self._read[number] = self.lm.session(capacity=most)
            self._read[number].prefill(ids[:, :most])
        return self._read[number].copy(most, ids.shape[1] + room, sparsity)

    def read(self, number: int, room: int, sparsity: SparsityConfig | None) -> Session:
        """The same after the whole prompt."""
        session = self.session(number, room, sparsity)
        session.prefill(self.ids[number][:, session.length(0) if session.rows else 0 :])
        return session

    def dense(self, number: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The dense model's greedy reply [1, T], and the logits [1, T - 1, V] after all of its tokens but the last."""
        if number not in self._dense:
            dense = Arm(self.lm.policy("dense"))
            (row,) = _decoded(self, [number], dense, [Budget()], longest, [lambda text: False], 1)
            reply = torch.tensor([row.ids])
            logits = torch.zeros(1, 0, 0)
            if reply.shape[1] > 1:
                scored = self.read(number, longest, None).score(reply, keep_logits=True)
                assert scored.logits is not None
                logits = scored.logits
            self._dense[number] = reply, logits
        return self._dense[number]

    def spent(self, number: int, realised: np.ndarray, counted: np.ndarray) -> dict[str, float]:
        """What steps of realised shares [T, axes] after a prompt spent: per axis the average over those that could be
        controlled (`counted` [T, axes] bool), and where step times are known milliseconds, and those of dense steps."""
        steps = np.where(counted, realised, 1.0)
        means = np.where(counted.any(0), (realised * counted).sum(0) / counted.sum(0).clip(min=1), 1.0)
        spent: dict[str, float] = dict(zip(AXES, means.tolist(), strict=True)) | {"net": float(means.mean())}
        if self._measured is not None and len(steps):
            seen = self.ids[number].shape[1] + 1 + np.arange(len(steps))
            spent["ms"] = float(self._measured.milliseconds(steps, seen).mean())
            spent["dense_ms"] = float(self._measured.milliseconds(np.ones_like(steps), seen).mean())
        return spent


def reply(
    prompts: Prompts, problems: Sequence[Problem], arm: Arm, budgets: Sequence[Budget], longest: int, batch: int
) -> list[Made]:
    """Greedy replies of at most `longest` tokens to all prompts, graded, each under its own one of `budgets`; `batch`
    rows decode together, as `solm generate` and the server decode them."""
    numbers = range(len(problems))
    rows = _decoded(prompts, numbers, arm, budgets, longest, [problem.complete for problem in problems], batch)
    made = []
    for number, row in zip(numbers, rows, strict=True):
        tokens, solved = row.ids, problems[number].solved
        assert solved is not None
        text = prompts.lm.tokenizer.decode(tokens, skip_special_tokens=True)
        realised = np.array(row.trace.realised).reshape(-1, len(AXES))
        counted = np.array(row.trace.controllable, bool).reshape(realised.shape)
        spent = prompts.spent(number, realised, counted)
        ended = len(tokens) < longest or row.sampler.ended(tokens[-1])
        metrics = {"solved": float(solved(text))}
        made.append(Made(metrics=metrics, tokens=len(tokens), ended=ended, steps=len(tokens) - 1, spent=spent))
    return made


def _decoded(
    prompts: Prompts, numbers: Sequence[int], arm: Arm, budgets: Sequence[Budget], longest: int,
    complete: Sequence[Callable[[str], bool]], batch: int,
) -> list[Row]:  # fmt: skip
    """The rows of finished replies. complete: by prompt, whether a text needs no more tokens. Raises
    `ContextLengthError` before anything is decoded."""
    lm, rows = prompts.lm, []
    for number in numbers:
        check_length(prompts.ids[number].shape[1], longest, lm.context)
    for number, budget, whole in zip(numbers, budgets, complete, strict=True):
        ids = prompts.ids[number]
        criteria = _complete(TextStream(lm.tokenizer, skip_special_tokens=True), whole)
        sampler = Sampler.of(lm, ids, 0, {})
        rows.append(Row(ids[0], arm.policy, budget.shares, longest, sampler, criteria=criteria))
        rows[-1].session = prompts.session(number, longest, arm.sparsity)
    for _ in decode(lm, rows, batch):
        pass
    return rows


def _complete(stream: TextStream, complete: Callable[[str], bool]) -> Callable[[list[int]], bool]:
    text = ""

    def ended(ids: list[int]) -> bool:
        nonlocal text
        text += stream.push(ids[-1])
        return complete(text)

    return ended


def follow(prompts: Prompts, arm: Arm, budgets: Sequence[Budget], longest: int) -> list[Made]:
    """How `arm` predicts the dense model's replies, the first token of which every arm has from the dense prompt:
    `agreed`, the share of their tokens before the first where its likeliest token is another than the dense model's;
    `identical`; and `kl`, nats from the dense model's distribution to the arm's, the mean over steps."""
    made = []
    for number, budget in enumerate(budgets):
        tokens, logits = prompts.dense(number, longest)
        length = tokens.shape[1]
        agreed, kl = 1, 0.0
        realised, counted = np.ones((0, len(AXES))), np.ones((0, len(AXES)), bool)
        if length > 1:
            session = prompts.read(number, longest, arm.sparsity)
            session.control(arm.policy, np.array([budget.shares]), longest)
            scored: Any = session.score(tokens, reference=logits, keep_logits=True)
            same = scored.logits[0].argmax(-1) == logits[0].argmax(-1)
            agreed += int(same.long().cumprod(0).sum())
            kl = float(scored.divergences.double().mean())
            realised, counted = scored.realised[0].cpu().numpy(), scored.controllable[0].cpu().numpy()
        metrics = {"agreed": agreed / length, "identical": float(agreed == length), "kl": kl}
        spent = prompts.spent(number, realised, counted)
        made.append(Made(metrics=metrics, tokens=length, ended=length < longest, steps=length - 1, spent=spent))
    return made
