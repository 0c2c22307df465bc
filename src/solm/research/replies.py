"""Replies to many prompts under one arm, decoded in batches, and how an arm predicts a reply that is known."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import torch

from solm.backends.logits import divergences
from solm.backends.machine import one_torch_thread
from solm.backends.session import Session
from solm.core.actions import AXES
from solm.core.arrays import as_tensor
from solm.core.budget import Budget, Terms
from solm.core.sparsity import SparsityConfig
from solm.evaluation.arms import Arm
from solm.policies.priced import PricedPolicy
from solm.runtime.decode import Draft, Row, decode
from solm.runtime.generate import check_length
from solm.runtime.language_model import LanguageModel
from solm.runtime.sampling import Sampler

_AFTER = 4
"""Last tokens of a prompt, which every reply reads anew: its first logits come from them."""


class Reply(TypedDict):
    """A reply as a partial result keeps it. ended: whether it ended by itself. steps: that spent."""

    text: str
    tokens: int
    ended: bool
    steps: int
    spent: Terms


class Followed(TypedDict):
    """How an arm predicts the tokens of a dense reply, the first of which every arm has from the dense prompt.

    agreed: tokens before the first that it would not have said. tokens: of the reply. kl: nats from the dense model's
    distribution to the arm's, the mean over steps.
    """

    agreed: int
    tokens: int
    kl: float
    steps: int
    spent: Terms


class Prompts:
    """Token ids [1, C] of prompts, each read once, densely, for all arms."""

    def __init__(self, lm: LanguageModel, ids: Sequence[np.ndarray]):
        self.lm, self.ids, self._measured = lm, ids, lm.budgets().measured
        self._read: dict[int, Session] = {}

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

    def spent(self, number: int, realised: np.ndarray, counted: np.ndarray) -> Terms:
        """What steps of realised shares [T, 3] after a prompt spent: per axis the average over those that could be
        controlled (`counted` [T, 3] bool), and where step times are known milliseconds, and those of dense steps."""
        steps = np.where(counted, realised, 1.0)
        means = np.where(counted.any(0), (realised * counted).sum(0) / counted.sum(0).clip(min=1), 1.0)
        spent: Terms = dict(zip(AXES, means.tolist(), strict=True)) | {"net": float(means.mean())}
        if self._measured is not None and len(steps):
            seen = self.ids[number].shape[1] + 1 + np.arange(len(steps))
            spent["ms"] = float(self._measured.milliseconds(steps, seen).mean())
            spent["dense_ms"] = float(self._measured.milliseconds(np.ones_like(steps), seen).mean())
        return spent


def replies(
    prompts: Prompts,
    numbers: Sequence[int],
    arm: Arm,
    budgets: Sequence[Budget],
    longest: int,
    complete: Sequence[Callable[[str], bool]],
    batch: int,
    told: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """Greedy replies of at most `longest` tokens to the prompts called `numbers`, each under its own one of `budgets`.

    complete: by prompt, whether a text needs no more tokens. batch: rows that decode together, as `solm generate` and
    the server decode them. told: called after every reply. Raises `ContextLengthError` before anything is decoded.
    """
    lm = prompts.lm
    for number in numbers:
        check_length(prompts.ids[number].shape[1], longest, lm.context)
    rows = []
    for number, budget, whole in zip(numbers, budgets, complete, strict=True):
        ids = prompts.ids[number]
        draft = Draft(lm, Sampler.of(lm, ids, 0, {}), ids.shape[1], arm.policy, skip_special_tokens=True)
        session = prompts.session(number, longest, arm.sparsity)
        rows.append(Row(ids, arm.policy, budget, longest, draft, _End(longest, whole, told), session))
    for _ in decode(lm, rows, batch):
        pass
    made = []
    for number, row in zip(numbers, rows, strict=True):
        tokens = row.draft.tokens
        realised = np.array([[token.realised[axis] for axis in AXES] for token in tokens[1:]]).reshape(-1, len(AXES))
        counted = np.array([[token.controllable[axis] for axis in AXES] for token in tokens[1:]], bool)
        text = lm.tokenizer.decode([token.id for token in tokens], skip_special_tokens=True)
        ended = len(tokens) < longest or row.draft.sampler.ended(tokens[-1].id)
        spent = prompts.spent(number, realised, counted.reshape(realised.shape))
        made.append(Reply(text=text, tokens=len(tokens), ended=ended, steps=len(tokens) - 1, spent=spent))
    return made


class _End:
    """Whether a reply is complete: an end token, the longest length, or a text that needs no more."""

    def __init__(self, longest: int, complete: Callable[[str], bool], told: Callable[[], None]):
        self._longest, self._complete, self._told, self._said = longest, complete, told, ""

    def __call__(self, draft: Draft) -> bool:
        self._said += draft.tokens[-1].text
        ended = (
            draft.sampler.ended(draft.tokens[-1].id) or len(draft.tokens) == self._longest or self._complete(self._said)
        )
        if ended:
            self._told()
        return ended


class DenseReplies:
    """The dense model's replies to some prompts, the likeliest token each time, with its logits [N, T, V].

    longest: T, at least 2.
    """

    def __init__(self, prompts: Prompts, numbers: Sequence[int], longest: int):
        self._prompts, self._numbers, self._longest = prompts, numbers, longest
        lm = prompts.lm
        for number in numbers:
            check_length(prompts.ids[number].shape[1], longest, lm.context)
        session, first = self._begun(Arm(lm.policy("dense")), np.ones((len(numbers), 3)))
        tokens, logits = [first.argmax(-1)], [first]
        for _ in range(longest - 1):
            logits.append(session.step(tokens[-1]).logits[:, 0])
            tokens.append(logits[-1].argmax(-1))
        self.tokens, self._logits = torch.stack(tokens, 1), torch.stack(logits, 1)
        stops = torch.tensor(sorted(Sampler.of(lm, prompts.ids[numbers[0]], 0, {}).stops), dtype=torch.int64)
        ends = torch.isin(self.tokens.cpu(), stops)
        self.lengths = torch.where(ends.any(1), ends.long().argmax(1) + 1, longest).tolist()

    def followed(self, arm: Arm, targets: np.ndarray) -> list[Followed]:
        """How `arm` predicts the replies, step by step, within targets [N, 3] shares. Up to the first token that it
        would not have said it does what it would do on its own."""
        lm = self._prompts.lm
        session, _ = self._begun(arm, targets)
        distances, same, realised, counted = [], [], [], []
        with one_torch_thread(lm.beside_engine):
            for place in range(1, self._longest):
                found = session.step(self.tokens[:, place - 1])
                logits = found.logits[:, 0]
                distances.append(divergences(logits[:, None], self._logits[:, place])[:, 0])
                same.append(logits.argmax(-1) == self.tokens[:, place])
                realised.append(found.realised[:, 0])
                counted.append(found.controllable[:, 0])
        kl, agrees, shares, counts = (torch.stack(each, 1).cpu() for each in (distances, same, realised, counted))
        made = []
        for row, (number, length) in enumerate(zip(self._numbers, self.lengths, strict=True)):
            steps = length - 1
            made.append(
                Followed(
                    agreed=1 + int(agrees[row, :steps].long().cumprod(0).sum()), tokens=length, steps=steps,
                    kl=float(kl[row, :steps].double().mean()) if steps else 0.0,
                    spent=self._prompts.spent(number, shares[row, :steps].numpy(), counts[row, :steps].numpy()),
                )
            )  # fmt: skip
        return made

    def _begun(self, arm: Arm, targets: np.ndarray) -> tuple[Session, torch.Tensor]:
        """A session that has read the prompts and follows `arm`, and the logits [N, V] after them."""
        whole: Session | None = None
        logits = []
        for number in self._numbers:
            session = self._prompts.session(number, self._longest, arm.sparsity)
            ids = self._prompts.ids[number]
            logits.append(as_tensor(session.prefill(ids[:, session.length(0) if session.rows else 0 :])))
            if whole is None:
                whole = session
            else:
                whole.join(session)
        assert whole is not None
        draws = arm.policy.reads_model and not isinstance(arm.policy, PricedPolicy)
        whole.control(arm.policy, targets, self._longest, torch.Generator().manual_seed(0) if draws else None)
        return whole, torch.cat(logits).float()
