"""Fitting a value network to samples of what random actions cost."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from solm.core.actions import ActionSpace
from solm.core.files import read_json
from solm.core.provenance import command_line, commit, plain_name, plain_names, versions
from solm.fit.folder import COSTS, FITTED, LONG_COSTS, Files
from solm.fit.job import Job
from solm.fit.plan import GRID
from solm.fit.samples import Samples, decision_layer, fitted_batches, read_samples
from solm.policies.artifact import WEIGHTS, PolicyConfig, TrainedPolicy
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig

CHOICES = ActionSpace.preset("sites-fine")
"""Levels that the policy chooses from; the network knows those of the grid."""
EPOCHS, BATCH = 8, 2048
_RATE, _WEIGHT_DECAY, _DROPOUT = 2e-3, 0.5, 0.5
_RISING = 0.1
"""Part of the steps in which the learning rate rises."""
_PART = 8192
"""Samples that are looked at together, in float32."""
_LARGEST_COST = 5.0
"""Nats. A few tokens change by more; without the limit they would decide the trust in the network."""
_LEAST = 1e-3
"""Nats that every action is taken to cost at least: the deviance needs positive means."""
_LEAST_COST = 1e-6
"""Nats that a level is taken to cost at least where it divides."""
_RARE = 50
"""Rows of an action below which its variance is that of all rows."""
_FIRST_INTERFERENCE = 0.05
"""Nats at which the parameter `interference` starts."""


def fit_network(job: Job) -> Files:
    """The policy, not yet compared."""
    (samples, texts), sizes = read_samples(job), job.sizes("samples")
    costs = [torch.tensor(axis, dtype=torch.float64) for axis in read_json(job.folder.path / COSTS)]
    after = tuple((context, tuple(factors)) for context, factors in read_json(job.folder.path / LONG_COSTS))
    config = ValueConfig(
        base_hidden=job.lm.shapes.hidden, layer=decision_layer(job.lm), grid=GRID, costs_after=after
    )  # fmt: skip
    network = fit_samples(samples, config, texts, texts - fitted_batches(texts))
    set_level_costs(network, costs)
    streams = [*job.texts.train, *job.own_texts]
    about = {
        "config": {
            "model": plain_name(job.lm.name), "data": plain_names([stream.name for stream in streams]),
            "minutes": job.minutes, "seed": job.seed, **sizes.model_dump(mode="json"),
        },
        "data_fingerprint": "-".join(stream.fingerprint for stream in streams), "versions": versions(),
        "made": {"command": command_line(), "commit": commit()},
        "trust": [round(value, 3) for value in network.trust.tolist()],
    }  # fmt: skip
    made = PolicyConfig(
        base=job.lm.identity, space=CHOICES, sparsity=job.sparsity, network=network.config, provenance=about
    )
    TrainedPolicy(made, network).save_pretrained((job.folder.path / FITTED).parent)
    return [f"fitted/{WEIGHTS}"]


def fit_samples(
    samples: Samples,
    config: ValueConfig,
    texts: int,
    held_out: int,
    *,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    dropout: float = _DROPOUT,
) -> ValueNetwork:
    """A value network for `samples` of so many texts, of which the last `held_out` are not fitted to.

    It is fitted to divergences by Poisson deviance, as their variance grows with their mean. For a calibrated model the
    divergence is the expected cost over next tokens, so that the fit does not see the variance of the token that came
    (a Rao-Blackwell estimate). The costs on tokens that came, of held-out texts, set the trust in the network.
    """
    torch.manual_seed(0)
    network = ValueNetwork(config, dropout)
    samples = replace(samples, cost=samples.cost.clamp(-_LARGEST_COST, _LARGEST_COST))
    steps = len(samples.cost) // texts
    train, test = samples.take(slice((texts - held_out) * steps)), samples.take(slice((texts - held_out) * steps, None))
    total = epochs * -(-len(train.cost) // batch)
    # What a step loses through the savings of the steps around it is no part of its own action's cost.
    interference = torch.nn.Parameter(torch.full((3,), _FIRST_INTERFERENCE))
    optimizer = torch.optim.AdamW([*network.parameters(), interference], _RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total, pct_start=_RISING)
    for _ in range(epochs):
        for index in torch.randperm(len(train.cost)).split(batch):
            some = train.take(index)
            optimizer.zero_grad()
            cost = predict(network, some, interference)
            (cost - some.divergence * cost.log()).mean().backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        count = config.kept_sensitivities
        picks = torch.randperm(len(samples.cost))[:count]
        kept = network(samples.hidden[picks].float(), samples.before[picks])
        scale = kept.mean(0)
        slopes, errors = torch.ones(3), torch.zeros(3)
        if len(test.cost):
            numbers = torch.arange(held_out).repeat_interleave(steps)
            slopes, errors = _slopes(network, train, test, numbers, interference, scale)
        trust = (slopes - errors).clamp(0, 1)
        kept = 1 + trust * (kept / scale - 1)
        network.training_sensitivities.copy_(kept.repeat(-(-count // len(kept)), 1)[:count])
        for axis, costs in enumerate(network.level_costs):
            costs.mul_(scale[axis]).clamp_(min=0)
        network.scale.copy_(scale)
        network.trust.copy_(trust)
    return network


@torch.no_grad()
def set_level_costs(network: ValueNetwork, costs: list[torch.Tensor]) -> None:
    """Set a fitted network's level costs to measured averages, per axis `costs` [levels] nats.

    The fit sees single steps among others that are random. Under a budget all steps save, and a step also bears what
    the others did to its keys and values. On the MLP and in bits this grows with the sensitivity of the token; on
    attention it does not, so that there only the part that the fit ascribes to the step itself is multiplied with the
    sensitivity (`ValueConfig.attention_own`).
    """
    own = network.level_costs[0].clone()
    for known, measured in zip(network.level_costs, costs, strict=True):
        # Noise may put a level above a lower one; costs fall with the level.
        known.copy_(measured[:-1].flip(0).clamp(min=0).cummax(0).values.flip(0))
    part = (own / network.level_costs[0].clamp(min=_LEAST_COST)).clamp(0, 1)
    network.config = network.config.model_copy(
        update={"attention_own": tuple(part.double().round(decimals=3).tolist())}
    )


def predict(network: ValueNetwork, rows: Samples, interference: torch.Tensor) -> torch.Tensor:
    """Cost [M] of the rows' actions, nats. interference: [3] cost per axis of a step among others that save all."""
    cost = (network(rows.hidden, rows.before) * _unit_costs(network, rows, interference)).sum(-1)
    return cost.clamp(min=_LEAST)


def _unit_costs(network: ValueNetwork, rows: Samples, interference: torch.Tensor) -> torch.Tensor:
    """[M, 3]: per axis what the rows' levels, and the savings around them, cost a token of sensitivity 1."""
    own = [F.pad(costs, (0, 1))[rows.after[:, axis].long()] for axis, costs in enumerate(network.level_costs)]
    return torch.stack(own, 1) + rows.saved * interference


def _slopes(
    network: ValueNetwork,
    train: Samples,
    test: Samples,
    texts: torch.Tensor,
    interference: torch.Tensor,
    mean: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[3] least squares of what average sensitivities, mean [3], leave unexplained of `test`'s costs, on what the
    network's sensitivities add, and their standard errors over texts [M], the numbers of the rows' texts (jackknife).
    Actions are weighted by the inverse variance of their costs in `train`.

    A slope below 1 says that the network separates tokens too far. Less its error it becomes the trust in the network:
    where few texts were held out, or sampled, one that explains nothing would often be trusted by chance.
    """
    variance = _variance(train.cost, _action_index(train.after, network.config), len(network.config.grid))
    count = int(texts.max()) + 1
    left, right = torch.zeros(count, 3, 3, dtype=torch.float64), torch.zeros(count, 3, dtype=torch.float64)
    for index, some in zip(torch.arange(len(texts)).split(_PART), texts.split(_PART), strict=True):
        part = test.take(index)
        unit = _unit_costs(network, part, interference)
        added = ((network(part.hidden, part.before) - mean) * unit).double()
        missing = part.cost.double() - (mean * unit).sum(1).double()
        weighted = added / variance.clamp(min=0.05)[_action_index(part.after, network.config)][:, None]
        left.index_add_(0, some, weighted[:, :, None] * added[:, None])
        right.index_add_(0, some, weighted * missing[:, None])
    without = _solved(left.sum(0) - left, right.sum(0) - right)  # one text
    errors = ((count - 1) / count * (without - without.mean(0)).square().sum(0)).sqrt()
    if count < 2:  # one text says nothing of how texts differ
        errors = torch.full_like(errors, torch.inf)
    return _solved(left.sum(0), right.sum(0)), errors.float()


def _solved(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The solutions [..., 3] of least squares with these sums."""
    return torch.linalg.solve(left + 1e-9 * torch.eye(3), right).float()


def _action_index(levels: torch.Tensor, config: ValueConfig) -> torch.Tensor:
    a, b, c = levels.long().unbind(-1)
    return (a * config.grid.shape[1] + b) * config.grid.shape[2] + c


def _variance(value: torch.Tensor, action: torch.Tensor, actions: int) -> torch.Tensor:
    """Variance [actions] float64 of a value [M] per action [M]; of all rows where an action is rare."""
    value, count = value.double(), torch.bincount(action, minlength=actions).double()
    mean, square = (torch.bincount(action, each, actions) / count.clamp(min=1) for each in (value, value**2))
    return torch.where(count < _RARE, value.var(), square - mean**2)
