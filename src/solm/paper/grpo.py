"""The training loop: collect, weigh, step, log, save; interrupted anywhere, it goes on as if it had not been."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from solm.core.budget import Ledger
from solm.core.errors import RunMismatchError, SolmError
from solm.core.interrupt import SIGTERM_CODE, Interrupted, signals
from solm.data.windows import TokenStream
from solm.paper.checkpoint import RunFolder
from solm.paper.config import TrainConfig
from solm.paper.objective import advantages, budget_penalty, clipped_objective
from solm.paper.ranks import Ranks
from solm.paper.rollout import Batch, collect
from solm.paper.sources import Record, provenance, training_streams
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.learned import LearnedPolicy
from solm.policies.network import Features, NetworkConfig, PolicyNetwork
from solm.runtime.language_model import LanguageModel

WEIGHT_DECAY, _GRADIENT_CLIP = 0.01, 2.0


def train(
    lm: LanguageModel,
    config: TrainConfig,
    out: Path,
    report: Callable[[Record], None] = lambda record: None,
    ranks: Ranks | None = None,
) -> TrainedPolicy:
    """Train a policy for `lm` in the folder `out`, going on from what is there; the finished policy.

    Several processes share the texts of an update. Advantages are whitened over all of them and gradients are summed
    once per update: the result is that of one process, but for the order of float sums. A run
    may go on with another number of them.

    report: called with the log record of every update. On SIGINT or SIGTERM the update in progress is finished and
    saved, then `Interrupted` is raised. Raises `RunMismatchError` where `out` holds a run of another configuration,
    text or model.
    """
    torch.manual_seed(config.seed)
    network = PolicyNetwork(
        NetworkConfig(
            base_hidden=lm.shapes.hidden,
            actions=len(config.space),
            width=config.width,
            heads=config.heads,
            budget_prior=config.budget_prior,
        )
    ).to(lm.backend.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    ranks = ranks or Ranks()
    ranks.share(config.texts)
    folder = RunFolder(out, config, ranks)
    try:
        streams = training_streams(lm, config, out, ranks)
        folder.check_origin(lm.identity, streams)
        done = folder.restore(network, optimizer)
        if done > config.updates:
            raise RunMismatchError(f"{out} is after {done} updates already; {config.updates} are asked for")
        trained = TrainedPolicy(
            PolicyConfig(base=lm.identity, space=config.space, sparsity=config.sparsity, network=network.config),
            network,
        )
        finished = _finished(out, network) if done >= config.updates else None
        # Nobody may write before everyone has looked.
        ranks.wait()
        if finished is None:
            _loop(lm, trained, optimizer, streams, config, folder, done, report, ranks)
            trained.config = trained.config.model_copy(update={"provenance": provenance(config, streams)})
            if ranks.first:
                trained.save_pretrained(out / "policy")
            ranks.wait()
        return finished or trained
    finally:
        folder.close()


def _finished(out: Path, network: PolicyNetwork) -> TrainedPolicy | None:
    """The policy that was written, if it holds what the last checkpoint does: a run may have been killed in between."""
    try:
        written = TrainedPolicy.from_pretrained(out / "policy")
    except SolmError:
        return None
    mine, theirs = network.state_dict(), written.network.state_dict()
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name].cpu(), theirs[name]) for name in mine)
    return written if same else None


def _loop(
    lm: LanguageModel,
    trained: TrainedPolicy,
    optimizer: torch.optim.Optimizer,
    streams: list[TokenStream],
    config: TrainConfig,
    folder: RunFolder,
    done: int,
    report: Callable[[Record], None],
    ranks: Ranks,
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    network = trained.network
    assert isinstance(network, PolicyNetwork)
    mine = ranks.share(config.texts)
    rows = slice(mine.start * config.rollouts, mine.stop * config.rollouts)
    part = (rows, config.texts * config.rollouts)
    policy = LearnedPolicy(network.eval(), config.space, "sample", clamp=False, part=part)
    saved, halfway, started = done, False, time.perf_counter()
    writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=done + 1) if ranks.first else None
    with signals() as stop:
        try:
            for update in range(done + 1, config.updates + 1):
                begun = time.perf_counter()
                batch = collect(lm, policy, streams, config, update, ranks)
                halfway = True
                record = {"update": update, **optimise(network, optimizer, batch, config, ranks)}
                halfway = False
                seconds = time.perf_counter() - begun
                record |= {
                    "token_steps_per_second": ranks.world * batch.episode.log_probabilities.numel() / seconds,
                    "seconds": time.perf_counter() - started,
                }
                done = update
                folder.log(record)
                for name, value in record.items():
                    if name != "update" and writer is not None:
                        writer.add_scalar(name, value, update)
                report(record)
                stopping = ranks.any(bool(stop))
                if update % config.checkpoint_every == 0 or stopping:
                    folder.save(network, optimizer, done)
                    saved = done
                if stopping:
                    raise Interrupted(stop[0] if stop else SIGTERM_CODE)
        finally:
            if writer is not None:
                writer.close()
            if saved < done and not halfway:
                folder.save(network, optimizer, done)


def optimise(
    network: PolicyNetwork, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, ranks: Ranks
) -> Record:
    """Update the network on one batch, of which this process holds a share; what happened to all, for the log."""
    episode = batch.episode
    assert episode.actions is not None
    device = batch.features.hidden.device
    group = (config.texts, config.rollouts)
    mine = ranks.share(config.texts * config.rollouts)

    def everyones(part: torch.Tensor) -> torch.Tensor:
        return ranks.gather(part.to(device)).cpu()

    controllable = everyones(episode.controllable)
    shares, target = everyones(episode.realised), everyones(batch.target)
    realised = Ledger((shares * controllable).sum(1), controllable.sum(1)).average
    # Steps at which there was something to decide.
    counted = (controllable & torch.tensor([levels > 1 for levels in config.space.shape])).any(-1)
    penalty, gap = budget_penalty(realised, target, config)
    rewards = everyones(episode.log_probabilities)
    advantage = advantages(
        rewards.unflatten(0, group).double(),
        shares.unflatten(0, group),
        penalty.unflatten(0, group),
        counted.unflatten(0, group),
        config,
    )
    advantage = advantage.flatten(0, 1).float()[mine]
    weight = counted[mine].float() / counted.sum()
    actions, advantage, weight = (x.to(device) for x in (episode.actions, advantage, weight))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.train()
    parts = torch.arange(len(actions), device=device).chunk(config.accumulate)
    old: list[torch.Tensor] = []
    for _ in range(config.epochs):
        optimizer.zero_grad(set_to_none=True)
        entropy = torch.zeros((), device=device)
        for index, part in enumerate(parts):
            features = Features(*(value[part].detach() for value in batch.features))
            logits, _ = network(features, network.start(len(part), device))
            if len(old) == index:
                old.append(logits.detach().log_softmax(-1).gather(-1, actions[part][..., None])[..., 0])
            # Weights sum to 1 over all parts of all processes, so losses and gradients add up.
            loss = clipped_objective(logits, old[index], actions[part], advantage[part], weight[part], config)
            loss.total.backward()
            entropy += loss.entropy.detach()
        ranks.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_CLIP)
        optimizer.step()
    network.eval()
    ranks.add_up([entropy])
    mean_gap = gap.abs().mean(0).tolist()
    return {
        "reward": float(rewards[counted].mean()),
        "perplexity": float(torch.exp(-rewards[counted].mean())),
        "gap_attention": mean_gap[0],
        "gap_mlp": mean_gap[1],
        "gap_bits": mean_gap[2],
        "realised_net": float(realised.mean()),
        "penalty": float(penalty.mean()),
        "entropy": float(entropy),
        "gradient_norm": float(norm),
    }
