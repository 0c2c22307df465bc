"""Engines whose prompts and steps are timed: the cpu backend, the stock transformers model, and peers."""

import argparse
import statistics
from collections.abc import Callable
from math import nan
from typing import Protocol, TypeVar

import numpy as np
import torch

import solm
from evidence.bench import peers
from evidence.bench.common import STEPS, clock, constant_step, in_turns, numbers, policy_step, spread
from solm.backends.session import Session

SETTINGS = {
    "dense": (1.0, 1.0, 16), "mlp 0.8": (1.0, 0.8, 16), "mlp 0.6": (1.0, 0.6, 16), "pages 0.2": (0.2, 1.0, 16),
    "pages 0.2, mlp 0.6": (0.2, 0.6, 16),
}  # fmt: skip
EVERY_LOGIT = "dense, every logit"
"""A dense step whose logits are all exact, as those of peers are."""
HALVES = {"high halves": (1.0, 1.0, 4), "high halves, pages 0.2, mlp 0.8": (0.2, 0.8, 4)}
"""Of nested weights."""
KNOWN = (1, 2, 3, 4, 5, 6, 8, 12, 16)
"""Tokens of a pass over known tokens of a row."""
TRANSFORMERS = "transformers"
Turns = dict[str, Callable[[], list[float]]]
_Found = TypeVar("_Found")


class Timed(Protocol):
    """An engine whose prompts and steps are timed."""

    name: str
    precision: str
    kv_cache: str
    error: str
    """Why it went no further; empty while it goes on."""

    def texts(self, texts: torch.Tensor) -> None:
        """From here on, rows are of texts [rows, context + 1]."""

    def read(self, row: int) -> float:
        """Milliseconds of reading all of a row's text but the last token."""

    def turns(self, rows: int) -> Turns:
        """Calls that decode the first rows' last tokens STEPS times after their texts, which have been read: by
        setting, milliseconds of each."""


class Ours:
    """The cpu backend; or transformers, which is dense and of one row."""

    error = ""

    def __init__(self, asked: argparse.Namespace, kind: str, stock: bool = False):
        self.precision, _, cache = kind.partition("+")
        self.kv_cache, self.stock = cache or "auto", stock
        self.policy, self.budgets = asked.policy, numbers(asked.budgets)
        if stock:
            self.lm = solm.load(asked.model, dtype=asked.dtype, backend="torch")
            self.name, self.precision = "transformers", str(self.lm.backend.dtype)
        else:
            preset = "nested" if self.precision == "nested" else "cpu"
            self.lm = solm.load(
                asked.model, asked.policy, sparsity=None if asked.policy else solm.SparsityConfig.preset(preset),
                dtype=asked.dtype, backend="cpu", precision=self.precision, kv_cache_dtype=self.kv_cache,
            )  # fmt: skip
            self.name = "cpu"

    def texts(self, texts: torch.Tensor) -> None:
        self.ids: torch.Tensor = texts
        self.sessions: dict[int, Session] = {}

    def read(self, row: int) -> float:
        session = self.lm.session(capacity=self.ids.shape[1] + STEPS)
        self.sessions[row] = session
        return clock(lambda: session.prefill(self.ids[row : row + 1, :-1]))

    def turns(self, rows: int) -> Turns:
        last = self.ids[:rows, -1]
        if self.stock:
            session = self.sessions[0]
            return {"dense": lambda: steps(session, session.step, last)} if rows == 1 else {}
        parent = self.sessions[0].fork(1, STEPS)
        for row in range(1, rows):
            parent.join(self.sessions[row].fork(1, STEPS))
        made: Turns = {}
        for name, keep in (SETTINGS | (HALVES if self.precision == "nested" else {})).items():
            fork = parent.fork(1, STEPS)
            made[name] = lambda fork=fork, step=constant_step(fork, keep): steps(fork, step, last)  # type: ignore[misc]
        session = parent.fork(1, STEPS)
        exact = constant_step(session, SETTINGS["dense"], exact_largest=0)
        made[EVERY_LOGIT] = lambda: steps(session, exact, last)
        for net in self.budgets if self.policy else ():
            fork, budget = parent.fork(1, STEPS), self.lm.budget(f"keep={net}")
            target = torch.tensor([budget.shares] * rows, dtype=torch.float64)
            made[f"policy {net:g}"] = lambda fork=fork, target=target: steps(  # type: ignore[misc]
                fork, policy_step(fork, self.lm.policy("policy"), target, STEPS), last
            )
        return made

    def known_ms(self, rounds: int) -> dict[str, dict[str, float]]:
        """Milliseconds of passes over known tokens of the first row, by their number; see `known_passes`."""
        tokens = np.resize(self.ids[0].numpy(), max(KNOWN))
        return known_passes(self.sessions[0].fork(1, max(KNOWN)), tokens, rounds)


class Theirs:
    """A peer in a process of its own. After its first `error` it finds NaN."""

    kv_cache = "auto"

    def __init__(self, asked: peers.Asked):
        self.name, self.precision, self.error = asked.name, asked.precision, ""
        self.peer = peers.Peer(asked)

    def texts(self, texts: torch.Tensor) -> None:
        self._try(lambda: self.peer.texts(texts.tolist(), STEPS), None)

    def read(self, row: int) -> float:
        return self._try(lambda: self.peer.read(row), nan)

    def turns(self, rows: int) -> Turns:
        setting = peers.LOOKED_UP if self.name in peers.LOOKUPS else "dense"
        if setting == peers.LOOKED_UP and rows > 1:
            return {}
        return {setting: lambda: self._try(lambda: self.peer.steps(rows, STEPS), [nan])}

    def _try(self, run: Callable[[], _Found], otherwise: _Found) -> _Found:
        try:
            return otherwise if self.error else run()
        except peers.PeerError as error:
            self.error = str(error)
            return otherwise


def steps(session: Session, step: Callable[[torch.Tensor], object], tokens: torch.Tensor) -> list[float]:
    """Milliseconds of STEPS steps, which the session then forgets."""
    start = session.lengths.clone()
    taken = [clock(lambda: step(tokens)) for _ in range(STEPS)]
    session.truncate(start)
    return taken


def known_passes(session: Session, tokens: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one pass over the first KNOWN of `tokens`, by their number. The session, of one row, then forgets
    them."""
    start = session.lengths.numpy().copy()

    def median(count: int) -> float:
        found = []
        for _ in range(STEPS):
            found.append(clock(lambda: session.extend(tokens[None, :count], exact_largest=1)))
            session.truncate(start)
        return statistics.median(found)

    turns = in_turns({count: lambda count=count: median(count) for count in KNOWN}, rounds)  # type: ignore[misc]
    return {str(count): spread(values) for count, values in turns.items()}


def shown(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f}, {found['high']:.{digits}f})"
