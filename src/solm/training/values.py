"""Training by counterfactual regression: collect samples batch by batch, fit the network, save the policy."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from solm.backends.logits import LOGITS_AT_ONCE
from solm.core.errors import DamagedFileError, SolmError
from solm.core.files import read_tensors, write_tensors
from solm.core.interrupt import SIGTERM_CODE, Interrupted, signals
from solm.core.parts import Parts
from solm.data.windows import TokenStream
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig
from solm.policies.value_weights import CostsAfter
from solm.runtime.language_model import LanguageModel
from solm.runtime.level_costs import expected_costs
from solm.training.checkpoint import RunFolder
from solm.training.config import ValueTrainConfig
from solm.training.counterfactual import Samples, collect_samples, draw_levels
from solm.training.ranks import Ranks
from solm.training.regression import fit
from solm.training.sources import Record, draw_windows, provenance, step_generator, training_streams

SAMPLES, LEVEL_COSTS = "samples", "level-costs.partial"
_MOST_TEXTS = 8
"""That share a pass where level costs are measured."""
_LEAST = 1e-6  # nats
_LEAST_FACTOR = 0.01


def train_values(
    lm: LanguageModel,
    config: ValueTrainConfig,
    out: Path,
    report: Callable[[Record], None] = lambda record: None,
    ranks: Ranks | None = None,
    level_costs: Callable[[int, int], None] = lambda done, total: None,
) -> TrainedPolicy:
    """Train in the folder `out`. Every finished batch is kept there, so that an interrupted run goes on.

    Several processes share the folder: each collects its part of the batches, and the first one fits. The policy does
    not depend on the number of processes, which may change when a run goes on.

    report: called after every batch with the record that the log gets. level_costs: called with the texts done and in
    all while level costs are measured, after the batches. Raises `Interrupted` at SIGINT or SIGTERM among the batches,
    `RunMismatchError` where `out` holds a run of another configuration, text or model, and `SolmError` for a layer that
    the model lacks.
    """
    layers = lm.shapes.layers
    if config.layer >= layers:
        raise SolmError(f"layer {config.layer} is out of range: this model has layers 0 to {layers - 1}")
    ranks = ranks or Ranks()
    folder = RunFolder(out, config, ranks)
    try:
        streams = training_streams(lm, config, out, ranks)
        folder.check_origin(lm.identity, streams)
        about = provenance(config, streams)
        done = _finished(out, about)
        # No process may write before all have looked.
        ranks.wait()
        if done is not None:
            return done
        collect(lm, config, folder, streams, report, ranks)
        ranks.wait()  # the first process reads the batches of all
        if not ranks.first:
            if ranks.lockstep:
                average_costs(lm, config, streams)
            ranks.wait()
            return TrainedPolicy.from_pretrained(out / "policy")
        key = [config.model_dump(mode="json"), [stream.fingerprint for stream in streams]]
        # Processes in lockstep measure every text together, and the others know nothing of what is kept here.
        kept = None if ranks.lockstep else out / LEVEL_COSTS
        costs = average_costs(lm, config, streams, parts=Parts(kept, key), progress=level_costs)
        trained = fitted_policy(lm, config, read_samples(out, config), costs, about)
        trained.save_pretrained(out / "policy")
        if kept is not None:
            kept.unlink()
        ranks.wait()
        return trained
    finally:
        folder.close()


def fitted_policy(
    lm: LanguageModel,
    config: ValueTrainConfig,
    samples: Samples,
    costs: list[torch.Tensor],
    about: Record,
    costs_after: CostsAfter = (),
) -> TrainedPolicy:
    """The policy of a network fitted to `samples`, with the measured level costs `costs` of `average_costs`.

    about: its provenance, to which is added how much of the divergence it explains. costs_after: see `ValueConfig`.
    """
    network = ValueConfig(
        base_hidden=lm.shapes.hidden, layer=config.layer, grid=config.space, width=config.width,
        costs_after=costs_after,
    )  # fmt: skip
    fitted, found = fit(samples, network, config.fit)
    set_level_costs(fitted, costs)
    made = PolicyConfig(
        base=lm.identity, space=config.choices, sparsity=config.sparsity, network=fitted.config,
        provenance={**about, "explained": [round(value, 5) for value in found.explained]},
    )  # fmt: skip
    return TrainedPolicy(made, fitted)


@torch.no_grad()
def average_costs(
    lm: LanguageModel,
    config: ValueTrainConfig,
    streams: list[TokenStream],
    batch: int | None = None,
    parts: Parts | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[torch.Tensor]:
    """Per axis [levels] float64: what every level costs where all steps take it, nats per token.

    batch: texts that share a pass; by default as many as have room for their dense and other logits, at most 8. parts:
    keeps finished batches. progress: called with texts done and in all.
    """
    context, length = config.level_cost_context, config.level_cost_length
    windows = draw_windows(streams, config.level_cost_texts, context + length + 1, step_generator(config.seed, 0, 1))
    batch = batch or max(1, min(_MOST_TEXTS, LOGITS_AT_ONCE // (2 * length * lm.shapes.vocabulary)))
    parts = parts or Parts(None, "")

    def measure(some: torch.Tensor) -> list[list[float]]:
        session = lm.session(capacity=context)
        session.prefill(some[:, :context])
        costs = expected_costs(session, some[:, context:], config.space)
        return [axis.sum((0, 1)).tolist() for axis in costs]

    sums, done = [], 0
    progress(0, len(windows))
    for number, some in enumerate(windows.split(batch)):
        sums.append(parts.get(f"{number} by {batch}", lambda some=some: measure(some)))  # type: ignore[misc]
        done += len(some)
        progress(done, len(windows))
    steps = len(windows) * length
    return [torch.tensor([part[axis] for part in sums], dtype=torch.float64).sum(0) / steps for axis in range(3)]


def cost_factors(near: list[torch.Tensor], far: list[torch.Tensor]) -> tuple[float, float, float]:
    """Per axis the level costs `far`, summed over the levels, divided by `near`: between 0.01 and 100, and 1 where
    `near` is 0. Each per axis [levels] nats, after another context."""
    totals = [(float(far_.sum()), float(near_.sum())) for far_, near_ in zip(far, near, strict=True)]
    attention, mlp, bits = (
        min(max(more / less, _LEAST_FACTOR), 1 / _LEAST_FACTOR) if less > 0 else 1.0 for more, less in totals
    )
    return attention, mlp, bits


@torch.no_grad()
def set_level_costs(network: ValueNetwork, costs: list[torch.Tensor]) -> None:
    """Set a fitted network's level costs to measured averages, per axis `costs` [levels] nats.

    The fit sees single steps among others that are random. Under a budget all steps save, and a step also bears what
    the others did to its keys and values. On the MLP and in bits this grows with the sensitivity of the token; on
    attention it does not (docs/results), so that there only the part that the fit ascribes to the step itself is
    multiplied with the sensitivity (`ValueConfig.attention_own`).
    """
    own = network.level_costs[0].clone()
    for known, measured in zip(network.level_costs, costs, strict=True):
        # Noise may put a level above a lower one; costs fall with the level.
        known.copy_(measured[:-1].flip(0).clamp(min=0).cummax(0).values.flip(0))
    part = (own / network.level_costs[0].clamp(min=_LEAST)).clamp(0, 1)
    parts = tuple(part.double().round(decimals=3).tolist())
    network.config = network.config.model_copy(update={"attention_own": parts})


def collect(
    lm: LanguageModel,
    config: ValueTrainConfig,
    folder: RunFolder,
    streams: list[TokenStream],
    report: Callable[[Record], None] = lambda record: None,
    ranks: Ranks | None = None,
) -> None:
    """Collect the batches of samples that the run folder lacks. Raises `Interrupted` at SIGINT or SIGTERM, with every
    finished batch kept."""
    ranks, out = ranks or Ranks(), folder.path
    started = time.perf_counter()
    with signals() as stop:
        for first in range(1, config.batches + 1, ranks.world):
            # A process without a batch of its own that the others need repeats the last batch.
            batch = min(first + ranks.rank, config.batches)
            held_out = from_end(config, batch)
            path = samples_path(out, batch, held_out)
            wanted = first + ranks.rank <= config.batches and not path.exists()
            if not (ranks.any(wanted) if ranks.lockstep else wanted):
                continue
            begun = time.perf_counter()
            samples = batch_of_samples(lm, config, streams, batch, held_out)
            stopping = ranks.any(bool(stop)) if ranks.lockstep else bool(stop)
            if wanted:
                write_tensors(path, dict(vars(samples)))
                record = {
                    "update": batch,
                    "cost": float(samples.cost.mean()),
                    "divergence": float(samples.divergence.mean()),
                    "perplexity": float(torch.exp(-samples.dense.mean())),
                    "token_steps_per_second": samples.cost.numel() / (time.perf_counter() - begun),
                    "seconds": time.perf_counter() - started,
                }
                folder.log(record)
                report(record)
            if stopping:
                raise Interrupted(stop[0] if stop else SIGTERM_CODE)


def batch_of_samples(
    lm: LanguageModel, config: ValueTrainConfig, streams: list[TokenStream], batch: int, held_out: bool = False
) -> Samples:
    """Batch number `batch`, from 1 on, of the samples of this configuration: random schedules of random texts.

    held_out: texts are from the end of every source, else from before it. A batch of which the fit holds out only some
    texts is from the end, too.
    """
    generator, length = step_generator(config.seed, batch, 0), config.context + config.length + 1
    parts = [stream.parted(config.fit.held_out, length)[held_out] for stream in streams]
    windows = draw_windows(parts, config.texts, length, generator)
    before, after = draw_levels(config.space, config.texts, config.schedules, config.length, generator)
    return collect_samples(lm, windows, config.context, config.layer, before, after, config.space)


def from_end(config: ValueTrainConfig, batch: int) -> bool:
    """Whether the texts of a batch are from the end of every source: what the fit holds out."""
    return batch > int(config.batches * (1 - config.fit.held_out))


def read_samples(out: Path, config: ValueTrainConfig, most: int | None = None) -> Samples:
    """The samples in the run folder `out`, those that the fit holds out last; raises `DamagedFileError`.

    most: so many of the first batches of the others; None: all.
    """
    others = int(config.batches * (1 - config.fit.held_out))
    batches = [*range(1, 1 + min(others, most or others)), *range(others + 1, config.batches + 1)]
    read = (read_batch(out, batch, from_end(config, batch)) for batch in batches)
    return Samples.join(read, len(batches) * config.texts)


def samples_path(out: Path, batch: int, held_out: bool) -> Path:
    """The file of a batch. It says which part of the sources the batch is from: with another number of batches that may
    be the other one."""
    return out / SAMPLES / f"{batch:05d}{'-held-out' if held_out else ''}.safetensors"


def read_batch(out: Path, batch: int, held_out: bool) -> Samples:
    """One batch; raises `DamagedFileError`."""
    path = samples_path(out, batch, held_out)
    try:
        return Samples(**read_tensors(path))
    except TypeError as error:
        raise DamagedFileError(f"{path} does not hold samples: {error}") from error


def _finished(out: Path, about: Record) -> TrainedPolicy | None:
    """The policy that this run has saved with these settings, if there is one."""
    try:
        trained = TrainedPolicy.from_pretrained(out / "policy")
    except SolmError:
        return None
    stored, now = (
        {name: value for name, value in found.items() if name not in ("explained", "made")}
        for found in (trained.config.provenance, json.loads(json.dumps(about)))
    )
    return trained if stored == now else None
