"""Counterfactual regression: collect samples batch by batch, fit the network, keep the policy."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from solm.core.errors import DamagedFileError, SolmError
from solm.core.files import read_tensors, write_tensors
from solm.data.windows import TokenStream
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.value_policy import ValueConfig, ValueNetwork
from solm.runtime.language_model import LanguageModel
from solm.runtime.level_costs import expected_gains
from solm.training.checkpoint import RunFolder
from solm.training.config import ValueTrainConfig
from solm.training.counterfactual import Samples, collect_samples, draw_levels
from solm.training.interrupt import SIGTERM_CODE, Interrupted, signals
from solm.training.ranks import Ranks
from solm.training.regression import fit
from solm.training.rollout import step_generator
from solm.training.sources import Record, draw_windows, provenance, training_streams

SAMPLES = "samples"
_LEAST = 1e-6  # nats


def train_values(
    lm: LanguageModel,
    config: ValueTrainConfig,
    out: Path,
    report: Callable[[Record], None] = lambda record: None,
    ranks: Ranks | None = None,
) -> TrainedPolicy:
    """Train in the folder `out`; every finished batch there is kept, so an interrupted run goes on.

    With several processes, which share the folder, each collects every so many-th batch and the first one fits: what
    comes out does not depend on how many there are, and a run may go on with more or fewer.

    report: called after every batch with what the log gets. Raises `Interrupted` at SIGINT or SIGTERM,
    `RunMismatchError` where `out` holds another configuration, and `SolmError` for a layer that the model lacks.
    """
    layers = lm.control.shapes.layers
    if config.layer >= layers:
        raise SolmError(f"layer {config.layer} is out of range: this model has layers 0 to {layers - 1}")
    ranks = ranks or Ranks()
    folder = RunFolder(out, config, ranks)
    try:
        streams = training_streams(lm, config, out, ranks)
        told = provenance(config, streams)
        done = _finished(out, told)
        # Nobody may write before everyone has looked.
        ranks.wait()
        if done is not None:
            return done
        _collect(lm, config, out, folder, streams, report, ranks)
        costs = level_costs(lm, config, streams) if ranks.first or ranks.lockstep else []
        ranks.wait()
        if not ranks.first:
            ranks.wait()
            return TrainedPolicy.from_pretrained(out / "policy")
        samples = read_samples(out, config.batches)
        network = ValueConfig(
            base_hidden=lm.control.shapes.hidden, layer=config.layer, grid=config.space, width=config.width
        )
        fitted, found = fit(samples, network, config.fit)
        calibrate(fitted, costs)
        told = {**told, "explained": [round(value, 5) for value in found.explained]}
        trained = TrainedPolicy(
            PolicyConfig(
                base=lm.identity,
                space=config.choices,
                sparsity=config.sparsity,
                network=fitted.config,
                provenance=told,
            ),
            fitted,
        )
        trained.save_pretrained(out / "policy")
        ranks.wait()
        return trained
    finally:
        folder.close()


@torch.no_grad()
def level_costs(
    lm: LanguageModel, config: ValueTrainConfig, streams: list[TokenStream], batch: int = 8
) -> list[torch.Tensor]:
    """Per axis what every level costs, in nats per token, where every step takes it: [levels] each."""
    length = config.calibration_context + config.calibration_horizon + 1
    windows = draw_windows(streams, config.calibration_texts, length, step_generator(config.seed, 0, 1))
    parts = []
    for some in windows.split(batch):
        session = lm.session(capacity=config.calibration_context)
        session.prefill(some[:, : config.calibration_context])
        parts.append(expected_gains(session, some[:, config.calibration_context :], config.space))
    return [torch.cat([part[axis] for part in parts]).mean((0, 1)) for axis in range(3)]


@torch.no_grad()
def calibrate(network: ValueNetwork, costs: list[torch.Tensor]) -> None:
    """Set a fitted network's profiles to `level_costs`.

    The fit sees one step at a time among others that are random; a budget buys whole runs, in which a step also bears
    what others did to its keys and values. On the MLP and in bits, tokens that suffer more do more of that too; on
    attention there is no such relation (docs/results), so there only what the fit ascribes to the step itself follows
    its sensitivity.
    """
    borne = network.profiles[0].clone()
    for allocation, cost in zip(network.profiles, costs, strict=True):
        # Noise may put a level above the next one; costs fall with every level.
        allocation.copy_(cost[:-1].flip(0).clamp(max=0).cummin(0).values.flip(0))
    own = (borne / network.profiles[0].clamp(max=-_LEAST)).clamp(0, 1).abs()
    network.config = network.config.model_copy(update={"attention_own": tuple(own.double().round(decimals=3).tolist())})


def _collect(
    lm: LanguageModel,
    config: ValueTrainConfig,
    out: Path,
    folder: RunFolder,
    streams: list[TokenStream],
    report: Callable[[Record], None],
    ranks: Ranks,
) -> None:
    started = time.perf_counter()
    with signals() as stop:
        for turn in range(1, config.batches + 1, ranks.world):
            # Where nothing is left for a process that the others need, it goes through the last batch once more.
            batch = min(turn + ranks.rank, config.batches)
            path = _path(out, batch)
            wanted = turn + ranks.rank <= config.batches and not path.exists()
            if not (ranks.any(wanted) if ranks.lockstep else wanted):
                continue
            begun = time.perf_counter()
            generator = step_generator(config.seed, batch, 0)
            windows = draw_windows(streams, config.sequences, config.context + config.horizon + 1, generator)
            before, after = draw_levels(config.space, config.sequences, config.schedules, config.horizon, generator)
            samples = collect_samples(lm, windows, config.context, config.layer, before, after, config.space)
            stopping = ranks.any(bool(stop)) if ranks.lockstep else bool(stop)
            if wanted:
                write_tensors(path, dict(vars(samples)))
                record = {
                    "update": batch,
                    "gain": float(samples.gain.mean()),
                    "divergence": float(samples.divergence.mean()),
                    "perplexity": float(torch.exp(-samples.dense.mean())),
                    "token_steps_per_second": samples.gain.numel() / (time.perf_counter() - begun),
                    "seconds": time.perf_counter() - started,
                }
                folder.log(record)
                report(record)
            if stopping:
                raise Interrupted(stop[0] if stop else SIGTERM_CODE)


def read_samples(out: Path, batches: int) -> Samples:
    """The samples of the first `batches` batches in the run folder `out`; raises `DamagedFileError`."""
    return Samples.join([_read(_path(out, batch)) for batch in range(1, batches + 1)])


def _path(out: Path, batch: int) -> Path:
    return out / SAMPLES / f"{batch:05d}.safetensors"


def _read(path: Path) -> Samples:
    try:
        return Samples(**read_tensors(path))
    except TypeError as error:
        raise DamagedFileError(f"{path} does not hold samples: {error}") from error


def _finished(out: Path, told: Record) -> TrainedPolicy | None:
    """The policy of this very run, if there is one."""
    try:
        trained = TrainedPolicy.from_pretrained(out / "policy")
    except SolmError:
        return None
    stored, now = (
        {name: value for name, value in found.items() if name not in ("explained", "made")}
        for found in (trained.config.provenance, json.loads(json.dumps(told)))
    )
    return trained if stored == now else None
