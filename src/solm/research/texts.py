"""Held-out text that is read once, and how policies do on what follows, for studies that ask many times."""

import torch

from solm.backends.torch.session import Session
from solm.data.windows import TokenStream
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Policy
from solm.runtime.drive import teacher_forced
from solm.runtime.language_model import LanguageModel


def windows_of(streams: list[TokenStream], texts: int, context: int, length: int, seed: int = 0) -> torch.Tensor:
    """Held-out windows [texts, context + length + 1]; raises `DataError` where the streams have too little text."""
    settings = EvaluationSettings(budgets=(1.0,), texts=texts, context=context, length=length, seed=seed)
    return held_out_windows(streams, settings)


class Texts:
    """Windows [S, context + T + 1] of which the first `context` tokens are read densely, `batch` texts at a time."""

    def __init__(self, lm: LanguageModel, windows: torch.Tensor, context: int, batch: int):
        self.windows = windows
        self.room = windows.shape[1] - context + lm.sparsity.page_size
        self.read: list[tuple[Session, torch.Tensor]] = []
        for some in windows.split(batch):
            session = lm.session(capacity=context)
            session.prefill(some[:, :context])
            self.read.append((session, some[:, context:]))

    def run(
        self, policy: Policy | PricedPolicy, target: torch.Tensor, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K runs over every text, target [S, K, 3]: float64 nats per token [S, K], mean realised shares [S, K, 3]."""
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
