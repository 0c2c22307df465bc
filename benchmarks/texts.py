"""Held-out text that is read once, and how policies do on what follows, for benchmarks that ask many times."""

from pathlib import Path

import torch

from policies import held_out
from solm.backends.torch.session import Session
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Policy
from solm.runtime.drive import teacher_forced
from solm.runtime.language_model import LanguageModel


class Texts:
    """S held-out texts of `context` tokens, read densely `batch` at a time, and of `length` that follow."""

    def __init__(self, lm: LanguageModel, data: Path, count: int, context: int, length: int, batch: int, seed: int = 0):
        settings = EvaluationSettings(budgets=(1.0,), texts=count, context=context, length=length, seed=seed)
        self.windows = held_out_windows(held_out(data, lm), settings)
        self.room = length + lm.sparsity.page_size
        self.read: list[tuple[Session, torch.Tensor]] = []
        for some in self.windows.split(batch):
            session = lm.session(capacity=context)
            session.prefill(some[:, :context])
            self.read.append((session, some[:, context:]))

    def run(
        self, policy: Policy | PricedPolicy, target: torch.Tensor, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K runs over every text, target [S, K, 3]: nats per token [S, K], average realised shares [S, K, 3]."""
        forks = target.shape[1]
        nats, spent = [], []
        goals = target.split([len(tokens) for _, tokens in self.read])
        for index, ((session, tokens), goal) in enumerate(zip(self.read, goals, strict=True)):
            rows = session.fork(forks, capacity=self.room)
            generator = torch.Generator().manual_seed(seed * len(self.read) + index)
            episode = teacher_forced(rows, policy, tokens.repeat_interleave(forks, 0), goal.flatten(0, 1), generator)
            nats.append(-episode.log_probabilities.double().mean(1).view(-1, forks))
            spent.append(rows.ledger.average.view(-1, forks, 3))
        return torch.cat(nats), torch.cat(spent)
