"""Training by GRPO on counterfactual schedules: collect, weigh, step, log, save; interrupted anywhere, it goes on as if
it had not been."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from solm.core.errors import RunMismatchError
from solm.core.provenance import command_line, commit, plain_name, plain_names, versions
from solm.evaluation.texts import TokenStream, token_stream
from solm.paper.config import TrainConfig
from solm.paper.network import Features, NetworkConfig, PolicyNetwork
from solm.paper.policy import PaperPolicy, PolicyConfig
from solm.paper.rollout import Episode, collect
from solm.paper.run_folder import Run, restore, run_folder, save
from solm.runtime.language_model import LanguageModel

_PENALTY = (100.0, 100.0, 200.0)
"""Weight per axis of the squared budget gap."""
_TOLERANCE = 0.02
"""Budget gap per axis without penalty, in shares."""
_RATIO_CLIP = 0.2
_WEIGHT_DECAY, _GRADIENT_CLIP = 0.01, 2.0


def returns_to_go(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """G_t = Σ γ^i r_{t+i} along the last dimension."""
    steps = rewards.shape[-1]
    lag = torch.arange(steps)[:, None] - torch.arange(steps)
    weights = torch.where(lag >= 0, float(gamma) ** lag.clamp(min=0), 0.0).to(rewards)
    return rewards @ weights


def budget_penalty(
    realised: torch.Tensor, target: torch.Tensor, config: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft penalty [...] of average shares realised [..., 3] against target [..., 3], and the signed gaps.

    Only axes with more than one level count.
    """
    gap = realised - target
    weight = torch.tensor(_PENALTY) * torch.tensor([levels > 1 for levels in config.space.shape])
    excess = (gap.abs() - _TOLERANCE).clamp(min=0)
    return (weight.to(gap) * excess**2).sum(-1), gap


def advantages(
    rewards: torch.Tensor, penalty: torch.Tensor, counted: torch.Tensor, config: TrainConfig
) -> torch.Tensor:
    """Advantages [S, K, T] of S texts, K rollouts each, T steps, whitened over the counted steps of the batch.

    rewards: [S, K, T] log-probabilities; penalty: [S, K]; counted: [S, K, T].

    ``process`` centres the return-to-go of every step over the K rollouts of a text; ``outcome`` gives every step the
    episode's total, centred likewise (both arXiv 2605.10875). With both, a step that spends more has a higher return,
    and a lower one only through the penalty and through later steps.
    """
    rewards = rewards * counted
    if config.advantage == "outcome":
        value = (rewards.sum(-1) - penalty)[..., None].expand_as(rewards)
    else:
        value = returns_to_go(rewards, config.gamma) - penalty[..., None]
    value = value - value.mean(1, keepdim=True)
    used = value[counted]
    return (value - used.mean()) / used.std().clamp(min=1e-6)


def clipped_objective(
    logits: torch.Tensor,
    old: torch.Tensor,
    actions: torch.Tensor,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    config: TrainConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped ratio objective with entropy bonus, as a loss, and the entropy; logits [N, T, A], the rest [N, T].

    weight: of every step, 0 where there was nothing to decide; those of the whole batch sum to 1.
    """
    log_policy = logits.log_softmax(-1)
    chosen = log_policy.gather(-1, actions[..., None])[..., 0]
    ratio = (chosen - old).exp()
    clipped = ratio.clamp(1 - _RATIO_CLIP, 1 + _RATIO_CLIP)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    entropy = (-(log_policy.exp() * log_policy).sum(-1) * weight).sum()
    return -(gain * weight).sum() - config.entropy * entropy, entropy


def optimise(
    network: PolicyNetwork, optimizer: torch.optim.Optimizer, episode: Episode, config: TrainConfig
) -> dict[str, Any]:
    """Update the network on the episodes of one update; what happened, for the log."""
    device, group = episode.features.hidden.device, (config.texts, config.rollouts)
    realised = episode.averages
    # Steps at which there was something to decide.
    counted = (episode.controllable & torch.tensor([levels > 1 for levels in config.space.shape])).any(-1)
    penalty, gap = budget_penalty(realised, episode.target, config)
    rewards = episode.log_probabilities
    advantage = advantages(
        rewards.unflatten(0, group).double(), penalty.unflatten(0, group),
        counted.unflatten(0, group), config,
    ).flatten(0, 1).float()  # fmt: skip
    weight = counted.float() / counted.sum()
    actions, advantage, weight = (x.to(device) for x in (episode.actions, advantage, weight))
    network.train()
    features, old = Features(*(value.detach() for value in episode.features)), None
    for _ in range(config.epochs):
        optimizer.zero_grad(set_to_none=True)
        logits, _ = network(features, network.start(len(actions), device))
        if old is None:
            old = logits.detach().log_softmax(-1).gather(-1, actions[..., None])[..., 0]
        loss, entropy = clipped_objective(logits, old, actions, advantage, weight, config)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_CLIP)
        optimizer.step()
    network.eval()
    gaps = gap.abs().mean(0).tolist()
    return {
        "reward": float(rewards[counted].mean()),
        "perplexity": float(torch.exp(-rewards[counted].mean())),
        **{f"gap_{axis}": value for axis, value in zip(("attention", "mlp", "bits"), gaps, strict=True)},
        "realised_net": float(realised.mean()),
        "penalty": float(penalty.mean()),
        "entropy": float(entropy.detach()),
        "gradient_norm": float(norm),
    }


def train(
    lm: LanguageModel,
    config: TrainConfig,
    out: Path,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> PaperPolicy:
    """Train a policy for `lm`, which has the configuration's sparsity, in the folder `out`, going on from what is
    there; the finished policy.

    report: called with the log record of every update, after which all is saved. Raises `RunMismatchError` where `out`
    holds a run of another configuration, text or model.
    """
    torch.manual_seed(config.seed)
    sizes = NetworkConfig(
        base_hidden=lm.shapes.hidden, actions=len(config.space), width=config.width, heads=config.heads,
    )  # fmt: skip
    network = PolicyNetwork(sizes).to(lm.backend.device).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
    made = PolicyConfig(base=lm.identity, space=config.space, sparsity=config.sparsity, network=sizes)
    policy = PaperPolicy(made, network, clamp=False)
    streams = [token_stream(source, lm.tokenizer) for source in config.data]
    run = Run(config=config, model=lm.identity, text=tuple(stream.fingerprint for stream in streams))
    with run_folder(out, run):
        log = restore(out, network, optimizer)
        if len(log) > config.updates:
            raise RunMismatchError(f"{out} is after {len(log)} updates already; {config.updates} are asked for")
        for update in range(len(log) + 1, config.updates + 1):
            begun = time.perf_counter()
            episode = collect(lm, policy, streams, config, update)
            record = {"update": update, **optimise(network, optimizer, episode, config)}
            record["token_steps_per_second"] = episode.actions.numel() / (time.perf_counter() - begun)
            log.append(record)
            report(record)
            save(out, network, optimizer, log)
        finished = PaperPolicy(made.model_copy(update={"provenance": _provenance(config, streams)}), network)
        finished.save(out / "policy")
    return finished


def _provenance(config: TrainConfig, streams: list[TokenStream]) -> dict[str, Any]:
    """Where a policy comes from."""
    names = {"model": plain_name(config.model), "data": plain_names(config.data)}
    return {
        "config": config.model_dump(mode="json", exclude={"space", "sparsity"}) | names,
        "data_fingerprint": "-".join(stream.fingerprint for stream in streams),
        "versions": versions(),
        "made": {"command": command_line(), "commit": commit()},
    }
