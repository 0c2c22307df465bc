"""Episodes: the tokens of a text, taken one by one under the actions that a policy draws; and what they lose against
the static schedule that spends as much."""

from dataclasses import dataclass
from typing import Any

import torch

from solm.backends.logits import log_probabilities
from solm.backends.session import Session
from solm.core.actions import DENSE
from solm.core.budget import Budget
from solm.evaluation.result import paired_difference
from solm.evaluation.texts import TokenStream, token_stream
from solm.paper.config import TrainConfig
from solm.paper.network import Features
from solm.paper.policy import PaperPolicy, Situation
from solm.policies.schedules import Static
from solm.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class Episode:
    """T steps of N rows. log_probabilities: [N, T] float32 of the tokens that followed. realised: [N, T, 3] float64
    shares. controllable: [N, T, 3] bool. actions: [N, T] int64. features: what the network saw. target: [N, 3] float64,
    the budget shares."""

    log_probabilities: torch.Tensor
    realised: torch.Tensor
    controllable: torch.Tensor
    actions: torch.Tensor
    features: Features
    target: torch.Tensor

    @property
    def averages(self) -> torch.Tensor:
        """[N, 3] float64: mean shares over the steps that could be controlled; 1 where none could."""
        counted = self.controllable.sum(1)
        return torch.where(counted > 0, (self.realised * self.controllable).sum(1) / counted.clamp(min=1), 1.0)


def read_context(lm: LanguageModel, context: torch.Tensor) -> tuple[Session, torch.Tensor]:
    """A session of S rows that have read context [S, C], C at least 2, and what the output head read last [S, H]."""
    session = lm.session(capacity=context.shape[1])
    session.prefill(context[:, :-1])
    last = session.step(context[:, -1], torch.tensor(DENSE, dtype=torch.float64).expand(len(context), 3))
    return session, last.hidden[:, 0]


def play(
    lm: LanguageModel,
    policy: PaperPolicy,
    session: Session,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator,
) -> Episode:
    """Take the first T of tokens [N, T + 1] in a session of N rows whose head has read hidden [N, H], within target
    [N, 3] shares; no target below the least that the steps can realise."""
    space, steps = policy.config.space, tokens.shape[1] - 1
    least = Situation.of(lm, space, session.sparsity, session.lengths)
    target = torch.maximum(target, torch.stack([axis[:, 0] for axis in least.levels], 1))
    rows = policy.start(hidden, target, steps)
    embedded, parts, seen = lm.backend.embed(tokens[:, :-1]), [], []
    for step in range(steps):
        situation = Situation.of(lm, space, session.sparsity, session.lengths)
        actions, observed, rows = policy.act(rows, situation, embedded[:, step], generator)
        result = session.step(tokens[:, step], space.table[actions])
        rows = rows.after(actions, result.hidden[:, 0], result.realised[:, 0], result.controllable[:, 0])
        followed = log_probabilities(result.logits, tokens[:, step + 1, None])[:, 0].cpu()
        parts.append((followed, result.realised[:, 0], result.controllable[:, 0], actions))
        seen.append(observed)
    scores, realised, controllable, actions = (torch.stack(values, 1) for values in zip(*parts, strict=True))
    features = Features(*(torch.cat(values, 1) for values in zip(*seen, strict=True)))
    return Episode(scores, realised, controllable, actions, features, target)


def step_generator(seed: int, update: int, purpose: int) -> torch.Generator:
    """A generator that depends on nothing but its arguments, so that a resumed run draws what it would have drawn."""
    return torch.Generator().manual_seed((seed * 1_000_003 + update) * 16 + purpose)


def draw_targets(config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """A budget for each of S texts: [S, 3] float64."""
    if config.budgets:
        picks = torch.randint(len(config.budgets), (config.texts,), generator=generator)
        shares = [Budget.from_net(config.budgets[index], config.space).shares for index in picks.tolist()]
        return torch.tensor(shares, dtype=torch.float64)
    low, high = torch.tensor(config.space.ranges, dtype=torch.float64).unbind(1)
    return low + (high - low) * torch.rand(config.texts, 3, generator=generator, dtype=torch.float64)


def collect(
    lm: LanguageModel, policy: PaperPolicy, streams: list[TokenStream], config: TrainConfig, update: int
) -> Episode:
    """The N = S·K episodes of one update, the K rollouts of a text adjacent: they share its tokens and its budget."""
    draw = step_generator(config.seed, update, 0)
    picks = torch.randint(len(streams), (config.texts,), generator=draw).tolist()
    windows = torch.cat([streams[pick].random(1, config.context + config.length + 1, draw) for pick in picks])
    target = draw_targets(config, step_generator(config.seed, update, 1)).repeat_interleave(config.rollouts, 0)
    session, hidden = read_context(lm, windows[:, : config.context])
    forks = session.fork(config.rollouts, capacity=config.length + lm.sparsity.page_size)
    tokens = windows[:, config.context :].repeat_interleave(config.rollouts, 0)
    draw = step_generator(config.seed, update, 2)
    return play(lm, policy, forks, hidden.repeat_interleave(config.rollouts, 0), tokens, target, draw)


def compare(
    lm: LanguageModel,
    policy: PaperPolicy,
    data: str,
    budgets: list[float],
    texts: int,
    context: int,
    length: int,
    seed: int,
) -> list[dict[str, Any]]:
    """By net keep the mean losses, nats per token, of the policy, of a static schedule within the averages that the
    policy realised in each text, and of dense steps; policy minus static with a 95 % interval over texts.

    data: a source of text, of which `texts` windows of `context` tokens, which are read densely, and `length` further
    ones are used, or as many as there are.
    """
    stream = token_stream(data, lm.tokenizer)
    windows = stream.spaced(texts, context + length + 1, torch.Generator().manual_seed(seed))
    session, hidden = read_context(lm, windows[:, :context])
    tokens, space = windows[:, context:], policy.config.space
    policy.network.to(lm.backend.device)
    everything = torch.tensor(DENSE, dtype=torch.float64).expand(len(windows), length, 3)
    dense = -session.fork(1).score(tokens, everything).log_probabilities.double().mean(1)
    points = []
    for number, net in enumerate(budgets):
        target = torch.tensor([Budget.from_net(net, space).shares] * len(windows), dtype=torch.float64)
        draw = step_generator(seed, number, 3)
        episode = play(lm, policy, session.fork(1), hidden, tokens, target, draw)
        spent = episode.averages
        plain = session.fork(1)
        plain.control(Static(space), spent, length)
        ours = -episode.log_probabilities.double().mean(1)
        theirs = -plain.score(tokens).log_probabilities.double().cpu().mean(1)
        points.append(
            {
                "budget": net,
                "realised": float(spent.mean()),
                "policy": float(ours.mean()),
                "static": float(theirs.mean()),
                "dense": float(dense.mean()),
                "difference": paired_difference(ours.numpy(), theirs.numpy()).model_dump(),
            }
        )
    return points
