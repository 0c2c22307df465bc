"""Quality against minutes of training: counterfactual regression, and policy gradient as here and as in the paper.

Every method trains on the same text, on one thread, and is measured after every number of minutes: policy minus
allocated on held-out text, at what the policy spent. Minutes are the process's own, so that a busy machine counts
nothing. Collecting, fitting and measuring level costs count; loading and evaluating do not. The further methods change
one thing each about counterfactual regression or policy gradient.

Example: solm study learning --threads 1 --train books.txt,web.txt --data wiki.txt --minutes 3,6 --out learn.json
"""

import json
import time
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.cost import ModelShapes
from solm.core.errors import BudgetError, RunMismatchError, SolmError
from solm.core.files import read_tensors, write_tensors
from solm.core.parts import Parts
from solm.data.windows import TokenStream
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import paired_difference
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.learned import LearnedPolicy
from solm.policies.network import NetworkConfig, PolicyNetwork
from solm.policies.schedules import Dense, Static
from solm.policies.value_policy import ValueConfig
from solm.research.studies import Names, Numbers, Progress, StudyOptions, check_layer
from solm.research.texts import Texts, windows_of
from solm.runtime.language_model import LanguageModel
from solm.training.checkpoint import LOG, RunFolder
from solm.training.config import TrainConfig, ValueTrainConfig
from solm.training.counterfactual import Samples
from solm.training.grpo import WEIGHT_DECAY, optimise
from solm.training.ranks import Ranks
from solm.training.regression import fit
from solm.training.rollout import collect
from solm.training.sources import training_streams
from solm.training.values import average_costs, batch_of_samples, read_batch, samples_path, set_level_costs

METHODS: dict[str, dict[str, Any]] = {
    "values": {},
    "values-token": {"layer": 0},  # what a table of tokens knows
    "values-layer-8": {"layer": 8},
    "grpo": {},
    # The paper's objective and network; what an action does to the model is the default, so that actions cost the same.
    "grpo-paper": {"budget_prior": False, "advantage": "process"},
    "grpo-no-prior": {"budget_prior": False},
    "grpo-process": {"advantage": "process"},
    "grpo-outcome": {"advantage": "outcome"},
    "grpo-myopic": {"gamma": 0.01},
    "grpo-long": {"length": 64},
}
"""What differs from the defaults of `solm train`."""
_COSTS = "costs.safetensors"
_FIT = 1.0
"""Seconds of fitting that a batch of samples will take."""


class Options(StudyOptions):
    train: Names = Field(description="Sources of training text, separated by commas.")
    minutes: Numbers = Field((3.0, 6.0, 12.0), description="Minutes of training after which the policy is compared.")
    methods: Names = Field(("values", "grpo", "grpo-paper"), description=f"Of {', '.join(METHODS)}.")
    space: str = Field("joint-27", description="Action space of the comparison.")
    budget: float = Field(0.45, gt=0, le=1, description="Net keep of the comparison.")
    allocation: str = Field("builtin:smollm2-135m", description="Policy whose sparsity and allocation all methods use.")
    runs: Path = Field(Path("runs/learning"), description="Folder for unfinished training.")
    layer: int = Field(4, ge=0, description="Layer before which a value policy decides.")
    train_batch: int = Field(4, ge=1, description="Texts of a training batch.")
    train_length: int = Field(384, ge=1, description="Tokens of a training text, for counterfactual regression.")

    @field_validator("minutes")
    @classmethod
    def _check_minutes(cls, minutes: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < some < inf for some in minutes):
            raise ValueError(f"minutes must be above 0 and finite, got {', '.join(map(str, minutes))}")
        return tuple(sorted(minutes))  # training goes on from one to the next

    def check(self, shapes: ModelShapes, context: int | None, trained: TrainedPolicy | None) -> None:
        check_layer(self.layer, shapes)
        try:
            Budget.from_net(self.budget, ActionSpace.preset(self.space))
        except BudgetError as error:
            raise SolmError(f"--budget: {error}") from error


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    """Raises `SolmError` for an unknown method."""
    if unknown := set(options.methods) - set(METHODS):
        raise SolmError(f"--methods: unknown {', '.join(sorted(unknown))}; choose among {', '.join(METHODS)}")
    # Under the allocation that ships, all of them: it was found before any training.
    sparsity = TrainedPolicy.from_pretrained(options.allocation).config.sparsity
    return measure(options.load(sparsity=sparsity), options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `points`, by method and minutes what policy and baseline lose above dense, their difference with a 95 %
    interval over texts, and what the training said."""
    held_out = options.streams(lm)
    windows = windows_of(held_out, options.texts, options.context, options.length, options.seed)
    settings = options.model_dump(mode="json") | {"data_fingerprint": [stream.fingerprint for stream in held_out]}
    texts = Texts(lm, windows, options.context, batch=options.texts)
    everything = torch.ones(options.texts, 1, 3, dtype=torch.float64)
    dense = float(texts.run(Dense(ActionSpace()), everything)[0].mean())
    common = {"data": options.train, "texts": options.train_batch, "seed": options.seed, "model": options.model}
    how = ValueTrainConfig(
        **common, context=options.context, length=options.train_length, sparsity=lm.sparsity,
        level_cost_texts=8, level_cost_context=options.context, layer=options.layer,
    )  # fmt: skip
    streams = training_streams(lm, how, options.runs, Ranks())
    same = {name: value for name, value in settings.items() if name not in ("minutes", "methods")}
    text = [stream.fingerprint for stream in streams]
    parts = Parts(partial, [same, text, lm.sparsity.model_dump(mode="json")])
    jobs = [(limit, method) for limit in options.minutes for method in options.methods]

    def point(limit: float, method: str) -> dict[str, Any]:
        out = options.runs / method
        if method.startswith("values"):
            snapshot = values(lm, how.model_copy(update=METHODS[method]), streams, limit, out)
        else:
            config = TrainConfig(
                **common, space=ActionSpace.preset(options.space), context=options.context, sparsity=lm.sparsity,
                **METHODS[method],
            )  # fmt: skip
            snapshot = grpo(lm, config, streams, limit, out)
        compared = compare(texts, dense, snapshot.policy, options)
        return {"method": method, "limit": limit, "minutes": snapshot.minutes, **compared, "training": snapshot.said}

    points = []
    for done, (limit, method) in enumerate(jobs):
        progress(f"{method}, {limit:g} minutes", done, len(jobs))
        points.append(parts.get(f"{method}/{limit}", lambda limit=limit, method=method: point(limit, method)))  # type: ignore[misc]
    return record("learning", settings, {"dense": dense, "points": points})


def compare(texts: Texts, dense: float, trained: TrainedPolicy, options: Options) -> dict[str, Any]:
    """Policy minus baseline at the budget, nats per token with a 95 % interval over texts; dense: theirs."""
    there = trained.with_space(ActionSpace.preset(options.space))
    ours, spent = texts.run(there.policy(), there.budget(options.budget).tensor(options.texts)[:, None])
    static, _ = texts.run(Static(there.config.space), spent)
    arm = "uniform" if there.config.sparsity.allocation is None else "allocated"
    return {
        "space": options.space, "realised": spent.mean((0, 1)).tolist(), "net_keep": float(spent.mean()),
        "policy_above_dense": float(ours.mean()) - dense, f"{arm}_above_dense": float(static.mean()) - dense,
        "difference": paired_difference(ours[:, 0].numpy(), static[:, 0].numpy())._asdict(),
    }  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A policy after `minutes`, which is what it took to go up to a limit and finish, and what its training said."""

    minutes: float
    policy: TrainedPolicy
    said: dict[str, Any]


class _Clock:
    """Seconds of this process's own time, beginning at `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._start = time.process_time() - seconds

    def __call__(self) -> float:
        return time.process_time() - self._start


def _logged(out: Path, limit: float) -> list[dict[str, Any]]:
    """What the run in `out` has logged. Raises `RunMismatchError` where it trained for more than `limit` minutes."""
    path = out / LOG
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len(found) > 1 and found[-2]["seconds"] > 60 * limit:  # the last one may exceed it
        raise RunMismatchError(f"{out} has trained for more than {limit:g} minutes; choose another --runs")
    return found


def grpo(lm: LanguageModel, config: TrainConfig, streams: list[TokenStream], limit: float, out: Path) -> Snapshot:
    """The policy after `limit` minutes, going on from what is in the folder `out`."""
    torch.manual_seed(config.seed)
    sizes = NetworkConfig(
        base_hidden=lm.shapes.hidden, actions=len(config.space), width=config.width, heads=config.heads,
        budget_prior=config.budget_prior,
    )  # fmt: skip
    network = PolicyNetwork(sizes).to(lm.backend.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    folder = RunFolder(out, config)
    folder.check_origin(lm.identity, streams)
    folder.restore(network, optimizer)
    records = _logged(out, limit)
    clock = _Clock(records[-1]["seconds"] if records else 0)
    policy = LearnedPolicy(network.eval(), config.space, "sample", clamp=False)
    while not records or clock() < 60 * limit:
        update = len(records) + 1
        batch = collect(lm, policy, streams, config, update, Ranks())
        records.append({"update": update, **optimise(network, optimizer, batch, config, Ranks()), "seconds": clock()})
        folder.log(records[-1])
        folder.save(network, optimizer, update)
    folder.close()
    last = records[-8:]
    said = {name: sum(one[name] for one in last) / len(last) for name in last[0]}
    steps = len(records) * config.texts * config.rollouts * config.length
    known = PolicyConfig(base=lm.identity, space=config.space, sparsity=lm.sparsity, network=sizes)
    return Snapshot(clock() / 60, TrainedPolicy(known, network), {**said, "update": len(records), "token_steps": steps})


def _held_out(batch: int) -> bool:
    """Every tenth batch is from the end of the sources, and measures the trust in the network. The second one is among
    them, so that there is one early."""
    return batch % 10 == 2


def values(
    lm: LanguageModel, config: ValueTrainConfig, streams: list[TokenStream], limit: float, out: Path
) -> Snapshot:
    """The same for counterfactual regression. The limit covers what a run of that length does: measuring level
    costs once, the collecting, and one fit of all that was collected."""
    sizes = ValueConfig(base_hidden=lm.shapes.hidden, layer=config.layer, grid=config.space, width=config.width)
    folder = RunFolder(out, config)
    folder.check_origin(lm.identity, streams)
    records = _logged(out, limit)
    parts = [read_batch(out, number, _held_out(number)) for number in range(1, 1 + len(records))]
    clock = _Clock(records[-1]["seconds"] if records else 0)
    if not records:
        write_tensors(out / _COSTS, {str(axis): cost for axis, cost in enumerate(average_costs(lm, config, streams))})
    while not records or clock() + _FIT * len(records) < 60 * limit:
        batch = len(records) + 1
        parts.append(batch_of_samples(lm, config, streams, batch, _held_out(batch)))
        write_tensors(samples_path(out, batch, _held_out(batch)), dict(vars(parts[-1])))
        records.append({"update": batch, "cost": float(parts[-1].cost.mean()), "seconds": clock()})
        folder.log(records[-1])
    folder.close()
    last = [part for number, part in enumerate(parts, 1) if _held_out(number)]
    others = [part for number, part in enumerate(parts, 1) if not _held_out(number)]
    collected = Samples.join(others + last, len(parts) * config.texts)
    network, found = fit(collected, sizes, config.fit, held_out=len(last) * config.texts or None)
    costs = read_tensors(out / _COSTS)
    set_level_costs(network, [costs[str(axis)] for axis in range(3)])
    known = PolicyConfig(base=lm.identity, space=config.space, sparsity=lm.sparsity, network=network.config)
    said = {"token_steps": collected.cost.numel(), "explained": found.explained[-1], "slopes": found.slopes}
    return Snapshot(clock() / 60, TrainedPolicy(known, network), said)


def lines(found: Record) -> list[str]:
    return [
        f"{point['method']:16} {point['minutes']:5.1f} minutes, {point['training']['token_steps']:,} token-steps: "
        "policy minus baseline {value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**point["difference"])
        for point in found.results["points"]
    ]


def plot(found: Record, kind: Kind) -> bytes:
    """Policy minus baseline by minutes of one thread's training, with 95 % intervals."""
    figure, axes = blank(7, 3.4)
    methods = list(dict.fromkeys(point["method"] for point in found.results["points"]))
    for place, method in enumerate(methods):
        mine = [point for point in found.results["points"] if point["method"] == method]
        differences = [point["difference"] for point in mine]
        away = [[abs(one[end] - one["value"]) for one in differences] for end in ("low", "high")]
        minutes = [point["minutes"] * 1.03 ** (place - 1) for point in mine]
        axes.errorbar(minutes, [one["value"] for one in differences], yerr=away, marker="o", capsize=2, label=method)
    axes.axhline(0, color="gray", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("minutes of training on one thread")
    axes.set_ylabel("policy minus baseline, nats per token")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture(figure, kind)
