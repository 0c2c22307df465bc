"""Counterfactual regression: collect samples batch by batch, fit the network, keep the policy."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from solm.data.windows import TokenStream
from solm.decoding.language_model import LanguageModel
from solm.errors import DamagedFileError, SolmError
from solm.files import read_tensors, write_tensors
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.values import ValueConfig
from solm.training.checkpoint import RunFolder
from solm.training.config import ValueTrainConfig
from solm.training.counterfactual import Samples, collect_samples, draw_levels
from solm.training.interrupt import Interrupted, signals
from solm.training.regression import fit
from solm.training.rollout import step_generator
from solm.training.sources import Record, draw_windows, provenance, training_streams

SAMPLES = "samples"


def train_values(
    lm: LanguageModel, config: ValueTrainConfig, out: Path, report: Callable[[Record], None] = lambda record: None
) -> TrainedPolicy:
    """Train in the folder `out`; every finished batch there is kept, so an interrupted run goes on.

    report: called after every batch with what the log gets. Raises `Interrupted` at SIGINT or SIGTERM,
    `RunMismatchError` where `out` holds another configuration, and `SolmError` for a layer that the model lacks.
    """
    layers = lm.control.shapes.layers
    if config.layer >= layers:
        raise SolmError(f"layer {config.layer} is out of range: this model has layers 0 to {layers - 1}")
    folder = RunFolder(out, config)
    try:
        streams = training_streams(lm, config, out)
        told = provenance(config, streams)
        done = _finished(out, told)
        if done is not None:
            return done
        _collect(lm, config, out, folder, streams, report)
        samples = Samples.join([_read(_path(out, batch)) for batch in range(1, config.batches + 1)])
        network = ValueConfig(
            base_hidden=lm.control.shapes.hidden, layer=config.layer, grid=config.space, width=config.width
        )
        fitted, found = fit(samples, network, config.fit)
        told = {**told, "explained": [round(value, 5) for value in found.explained]}
        trained = TrainedPolicy(
            PolicyConfig(
                base=lm.identity, space=config.space, semantics=config.semantics, network=network, provenance=told
            ),
            fitted,
        )
        trained.save_pretrained(out / "policy")
        return trained
    finally:
        folder.close()


def _collect(
    lm: LanguageModel,
    config: ValueTrainConfig,
    out: Path,
    folder: RunFolder,
    streams: list[TokenStream],
    report: Callable[[Record], None],
) -> None:
    started = time.perf_counter()
    with signals() as stop:
        for batch in range(1, config.batches + 1):
            path = _path(out, batch)
            if path.exists():
                continue
            begun = time.perf_counter()
            generator = step_generator(config.seed, batch, 0)
            windows = draw_windows(streams, config.sequences, config.context + config.horizon + 1, generator)
            before, after = draw_levels(config.space, config.sequences, config.schedules, config.horizon, generator)
            samples = collect_samples(lm, windows, config.context, config.layer, before, after, config.space)
            write_tensors(path, dict(vars(samples)))
            record = {
                "update": batch,
                "gain": float(samples.gain.mean()),
                "perplexity": float(torch.exp(-samples.dense.mean())),
                "token_steps_per_second": samples.gain.numel() / (time.perf_counter() - begun),
                "seconds": time.perf_counter() - started,
            }
            folder.log(record)
            report(record)
            if stop:
                raise Interrupted(stop[0])


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
    stored = {name: value for name, value in trained.config.provenance.items() if name != "explained"}
    return trained if stored == json.loads(json.dumps(told)) else None
