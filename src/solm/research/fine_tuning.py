"""Does policy gradient add anything to a fitted policy at equal minutes? A finished fit says how long its samples took:
after the first part of them, the network is fitted and then fine-tuned for as long as the others took, and compared
with the network of all samples.

Example: solm study fine-tuning --fit runs/smollm --train texts/ --data held-out.txt --out fine-tuning.json
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from solm.core.actions import AXES
from solm.core.errors import SolmError
from solm.core.files import beside, read_json
from solm.core.parts import Parts
from solm.data.windows import token_stream
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import paired_difference
from solm.fitting.phases import CHOICES, COSTS, TRAINING
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.schedules import Dense
from solm.policies.value_policy import ValueConfig
from solm.research.studies import Names, Numbers, Progress, StudyOptions
from solm.research.texts import Texts, windows_of
from solm.runtime.language_model import LanguageModel
from solm.training.checkpoint import LOG, read_stored
from solm.training.config import ValueTrainConfig
from solm.training.fine_tune import FineTuneConfig, fine_tune
from solm.training.regression import fit
from solm.training.values import from_end, read_samples, set_level_costs

ARMS = ("part", "fine-tuned", "all")


class Options(StudyOptions):
    fit: Path = Field(description="Folder of a finished `solm fit` of the model.")
    train: Names = Field(description="Sources of training text, separated by commas.")
    part: float = Field(0.5, gt=0, lt=1, description="Part of the samples before the fine-tuning.")
    budgets: Numbers = Field((0.8, 0.65, 0.5), description="Shares of the MLP's channels, all pages being read.")
    batch: int = Field(8, ge=1, description="Texts that are scored together.")
    learning_rate: float = Field(3e-4, gt=0, description="Of the fine-tuning.")
    backend: str = Field("cpu", description="torch, or cpu.")


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    """Raises `SolmError` where the folder holds no fit."""
    if not (options.fit / COSTS).exists():
        raise SolmError(f"--fit: {options.fit} holds no finished fit")
    trained = TrainedPolicy.from_pretrained(options.fit / TRAINING / "policy")
    lm = options.load(backend=options.backend, sparsity=trained.config.sparsity)
    trained.check(lm.identity, lm.shapes)
    return measure(lm, options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `points`, per budget and arm what it loses above dense, nats per token, and realised shares, with the
    differences of the fine-tuned network from the others, 95 % intervals over texts; seconds and updates."""
    assert lm.tokenizer is not None
    held_out = options.streams(lm)
    settings = options.model_dump(mode="json") | {"data_fingerprint": [stream.fingerprint for stream in held_out]}
    streams, training = [token_stream(source, lm.tokenizer) for source in options.train], options.fit / TRAINING
    fit_digest = TrainedPolicy.from_pretrained(training / "policy").config.digest
    parts = Parts(partial, [settings, [stream.fingerprint for stream in streams], fit_digest])
    config = read_stored(training)
    assert isinstance(config, ValueTrainConfig)
    batches = max(1, round(options.part * config.batches))
    arms = {"part": fitted(lm, options, config, batches), "all": fitted(lm, options, config, None)}
    seconds = sampling_seconds(training, config, batches)
    how = FineTuneConfig(
        context=config.context, length=config.length, learning_rate=options.learning_rate, seed=options.seed
    )

    def tuned() -> int:
        begun, updates = time.monotonic(), 0

        def more(done: int) -> bool:
            nonlocal updates
            updates = done
            progress(f"fine-tuning, update {done}", int(time.monotonic() - begun), int(seconds))
            return time.monotonic() - begun < seconds or not done

        found = fine_tune(lm, arms["part"], streams, how, more)
        arms["fine-tuned"] = found
        if partial is not None:
            found.save_pretrained(beside(partial))
        return updates

    updates = parts.get("updates", tuned)
    if "fine-tuned" not in arms:
        assert partial is not None
        arms["fine-tuned"] = TrainedPolicy.from_pretrained(beside(partial))
    windows = windows_of(held_out, options.texts, options.context, options.length, options.seed)
    texts = Texts(lm, windows, options.context, options.batch)
    everything = torch.ones(options.texts, 1, 3, dtype=torch.float64)
    dense = texts.run(Dense(CHOICES), everything)[0][:, 0]

    def point(budget: float) -> dict[str, Any]:
        target = torch.tensor([1.0, budget, 1.0], dtype=torch.float64).expand(options.texts, 1, 3)
        found = {name: texts.run(arms[name].policy(), target) for name in ARMS}
        nats = {name: losses[:, 0] - dense for name, (losses, _) in found.items()}
        spent = {name: shares.mean((0, 1)).tolist() for name, (_, shares) in found.items()}
        differences = {
            f"fine_tuned_minus_{name}": paired_difference(nats["fine-tuned"].numpy(), nats[name].numpy())._asdict()
            for name in ("part", "all")
        }
        of_arms = {
            name: {"nats": float(nats[name].mean()), **dict(zip(AXES, spent[name], strict=True))} for name in ARMS
        }
        return {"budget": budget, "arms": of_arms, **differences}

    points = []
    for number, budget in enumerate(options.budgets):
        progress(f"comparing at {budget:g}", number, len(options.budgets))
        points.append(parts.get(f"{budget:g}", lambda budget=budget: point(budget)))  # type: ignore[misc]
    told = {"points": points, "seconds": seconds, "updates": updates, "batches": [batches, config.batches]}
    return record("fine-tuning", settings, told)


def fitted(lm: LanguageModel, options: Options, config: ValueTrainConfig, batches: int | None) -> TrainedPolicy:
    """The policy of the fit's level costs and samples. batches: so many of its first batches, beside those that it
    holds out; None: all."""
    sizes = ValueConfig(base_hidden=lm.shapes.hidden, layer=config.layer, grid=config.space, width=config.width)
    samples = read_samples(options.fit / TRAINING, config, batches)
    every = config.batches * config.texts
    network, _ = fit(samples, sizes, config.fit, held_out=every - int(every * (1 - config.fit.held_out)))
    set_level_costs(network, [torch.tensor(axis, dtype=torch.float64) for axis in read_json(options.fit / COSTS)])
    made = PolicyConfig(base=lm.identity, space=CHOICES, sparsity=lm.sparsity, network=network.config)
    return TrainedPolicy(made, network)


def sampling_seconds(training: Path, config: ValueTrainConfig, batches: int) -> float:
    """Seconds that the batches of samples took which a network of the first `batches`, and of those that the fit holds
    out, has not seen."""
    said = [json.loads(line) for line in (training / LOG).read_text().splitlines()]
    steps = config.texts * config.schedules * config.length
    unseen = (one for one in said if one["update"] > batches and not from_end(config, one["update"]))
    return sum(steps / one["token_steps_per_second"] for one in unseen)


def lines(found: Record) -> list[str]:
    told: list[str] = []
    for point in found.results["points"]:
        losses = ", ".join(f"{name} {arm['nats']:+.4f}" for name, arm in point["arms"].items())
        gain = "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**point["fine_tuned_minus_all"])
        told.append(f"MLP {point['budget']:g}: {losses} nats above dense; fine-tuned minus all {gain}")
    return told


def plot(found: Record, kind: Kind) -> bytes:
    """Loss by budget and arm."""
    figure, axes = blank()
    points: list[dict[str, Any]] = found.results["points"]
    for name in ARMS:
        axes.plot(
            [point["arms"][name]["mlp"] for point in points], [point["arms"][name]["nats"] for point in points], "o-",
            label=name,
        )  # fmt: skip
    axes.set_xlabel("share of the MLP's channels")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False)
    return picture(figure, kind)
