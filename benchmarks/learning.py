"""Quality against minutes of training: counterfactual regression, and policy gradient as here and as in the paper.

    OMP_NUM_THREADS=1 python benchmarks/learning.py --data DATA
    OMP_NUM_THREADS=1 python benchmarks/learning.py --data DATA --minutes 6 --methods values-token,grpo-outcome

The further methods (see METHODS) change one thing about counterfactual regression or policy gradient each.

Every method trains on the same text, on one thread, and is measured after 3, 6 and 12 minutes: policy minus static on
held-out text, static given what the policy spent. Minutes are the process's own, so that a busy machine counts nothing;
loading and measuring do not count, collecting, fitting and calibrating do. Results are added to the file of `--out`,
what is in it is not done again, and training that was interrupted goes on.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from solm.core.actions import ActionSpace
from solm.core.files import read_tensors, write_tensors, write_text
from solm.data.windows import TokenStream
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import paired_difference
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.learned import LearnedPolicy
from solm.policies.network import NetworkConfig, PolicyNetwork
from solm.policies.schedules import Dense, Static
from solm.policies.value_policy import ValueConfig
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.training.checkpoint import LOG, RunFolder
from solm.training.config import TrainConfig, ValueTrainConfig
from solm.training.counterfactual import Samples, collect_samples, draw_levels
from solm.training.grpo import optimise
from solm.training.ranks import Ranks
from solm.training.regression import fit
from solm.training.rollout import collect, step_generator
from solm.training.sources import draw_windows, training_streams
from solm.training.values import SAMPLES, average_costs, read_samples, set_level_costs
from texts import Texts

SOURCES = ("books", "code", "news", "qa", "technical", "textbooks", "web", "wiki")
BUDGETS = {"joint-27": 0.45, "joint-8": 0.48}
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
TEXTS, CONTEXT, LENGTH = 48, 512, 128
COSTS = "costs.safetensors"
FIT = 1.0
"""Seconds of fitting that a batch of samples will take."""


@dataclass(frozen=True)
class Snapshot:
    """A policy after `minutes`, which is what it took to go up to a limit and finish, and what its training said."""

    minutes: float
    policy: TrainedPolicy
    said: dict[str, Any]


class Clock:
    """Seconds of this process's own time, beginning at `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._start = time.process_time() - seconds

    def __call__(self) -> float:
        return time.process_time() - self._start


def logged(out: Path) -> list[dict[str, Any]]:
    path = out / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def grpo(lm: LanguageModel, config: TrainConfig, streams: list[TokenStream], limit: float, out: Path) -> Snapshot:
    """The policy after `limit` minutes, going on from what is in the folder `out`."""
    torch.manual_seed(config.seed)
    sizes = NetworkConfig(
        base_hidden=lm.control.shapes.hidden, actions=len(config.space), width=config.width, heads=config.heads,
        budget_prior=config.budget_prior,
    )  # fmt: skip
    network = PolicyNetwork(sizes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    folder = RunFolder(out, config)
    folder.restore(network, optimizer)
    records = logged(out)
    clock = Clock(records[-1]["seconds"] if records else 0)
    policy = LearnedPolicy(network.eval(), config.space, "sample", clamp=False)
    while clock() < 60 * limit:
        update = len(records) + 1
        batch = collect(lm, policy, streams, config, update, Ranks())
        records.append({"update": update, **optimise(network, optimizer, batch, config, Ranks()), "seconds": clock()})
        folder.log(records[-1])
        folder.save(network, optimizer, update)
    folder.close()
    last = records[-8:]
    said = {name: sum(record[name] for record in last) / len(last) for name in last[0]}
    steps = len(records) * config.texts * config.rollouts * config.length
    known = PolicyConfig(base=lm.identity, space=config.space, sparsity=lm.sparsity, network=sizes)
    return Snapshot(clock() / 60, TrainedPolicy(known, network), {**said, "update": len(records), "token_steps": steps})


def values(
    lm: LanguageModel, config: ValueTrainConfig, streams: list[TokenStream], limit: float, out: Path
) -> Snapshot:
    """The same for counterfactual regression. The limit covers what a run of that length does: one calibration, the
    collecting, and one fit of all that was collected."""
    sizes = ValueConfig(base_hidden=lm.control.shapes.hidden, layer=config.layer, grid=config.space, width=config.width)
    folder = RunFolder(out, config)
    records = logged(out)
    parts = [read_samples(out, len(records))] if records else []
    clock = Clock(records[-1]["seconds"] if records else 0)
    if not records:
        write_tensors(out / COSTS, {str(axis): cost for axis, cost in enumerate(average_costs(lm, config, streams))})
    while not records or clock() + FIT * len(records) < 60 * limit:
        batch = len(records) + 1
        generator = step_generator(config.seed, batch, 0)
        windows = draw_windows(streams, config.texts, config.context + config.length + 1, generator)
        before, after = draw_levels(config.space, config.texts, config.schedules, config.length, generator)
        parts.append(collect_samples(lm, windows, config.context, config.layer, before, after, config.space))
        write_tensors(out / SAMPLES / f"{batch:05d}.safetensors", dict(vars(parts[-1])))
        records.append({"update": batch, "cost": float(parts[-1].cost.mean()), "seconds": clock()})
        folder.log(records[-1])
    folder.close()
    samples = Samples.join(parts)
    network, found = fit(samples, sizes, config.fit)
    costs = read_tensors(out / COSTS)
    set_level_costs(network, [costs[str(axis)] for axis in range(3)])
    known = PolicyConfig(base=lm.identity, space=config.space, sparsity=lm.sparsity, network=network.config)
    said = {"token_steps": samples.cost.numel(), "explained": found.explained[-1], "slopes": found.slopes}
    return Snapshot(clock() / 60, TrainedPolicy(known, network), said)


def measure(texts: Texts, dense: float, trained: TrainedPolicy, space: str) -> dict[str, Any]:
    """Policy minus static at the space's budget, nats per token with a 95 % interval over texts; dense: theirs."""
    there = trained.with_space(ActionSpace.preset(space))
    target = there.budget(BUDGETS[space]).tensor(TEXTS)[:, None]
    ours, spent = texts.run(there.policy(), target)
    static, _ = texts.run(Static(there.config.space), spent)
    return {
        "space": space, "realised": spent.mean((0, 1)).tolist(), "net_keep": float(spent.mean()),
        "policy_above_dense": float(ours.mean()) - dense, "static_above_dense": float(static.mean()) - dense,
        "difference": paired_difference(ours[:, 0].numpy(), static[:, 0].numpy())._asdict(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", default="3,6,12")
    parser.add_argument("--methods", default="values,grpo,grpo-paper", help=f"Of {', '.join(METHODS)}.")
    parser.add_argument("--spaces", default=",".join(BUDGETS))
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="Where unfinished training is kept.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/learning.json"))
    options = parser.parse_args()
    methods = options.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; choose among {', '.join(METHODS)}")
    points: list[dict[str, Any]] = json.loads(options.out.read_text())["points"] if options.out.exists() else []
    known = {(point["method"], point["space"], point["limit"]) for point in points}
    wanted = options.spaces.split(",")
    # Under the allocation that ships, all of them: it was found before any training.
    lm = load("builtin:smollm2-135m", sparsity=TrainedPolicy.from_pretrained("builtin:smollm2-135m").config.sparsity)
    texts = Texts(lm, options.data, TEXTS, CONTEXT, LENGTH, TEXTS, seed=1)
    dense = float(texts.run(Dense(ActionSpace()), torch.ones(TEXTS, 1, 3, dtype=torch.float64))[0].mean())
    common = {"data": tuple(str(options.data / "train" / source) for source in SOURCES)}
    how = ValueTrainConfig(**common, context=CONTEXT, length=384, level_cost_texts=8)
    streams = training_streams(lm, how, options.runs, Ranks())
    jobs = [
        (limit, method, spaces)
        for limit in (float(part) for part in options.minutes.split(","))
        for method in methods
        # A value policy serves every space; policy gradient trains one for each.
        for spaces in ([wanted] if method.startswith("values") else [[space] for space in wanted])
    ]
    for limit, method, spaces in jobs:
        if all((method, space, limit) in known for space in spaces):
            continue
        if method.startswith("values"):
            config = how.model_copy(update=METHODS[method])
            snapshot = values(lm, config, streams, limit, options.runs / method)
        else:
            config = TrainConfig(**common, space=spaces[0], **METHODS[method])
            snapshot = grpo(lm, config, streams, limit, options.runs / f"{method}-{spaces[0]}")
        for space in spaces:
            point = {"method": method, "limit": limit, "minutes": snapshot.minutes}
            point |= {**measure(texts, dense, snapshot.policy, space), "training": snapshot.said}
            points.append(point)
            print(json.dumps(point), flush=True)
            told = {"command": command_line(), "environment": environment(), "budgets": BUDGETS}
            sizes = {"texts": TEXTS, "context": CONTEXT, "length": LENGTH, "dense": dense}
            write_text(options.out, json.dumps({**told, **sizes, "points": points}, indent=2) + "\n")


if __name__ == "__main__":
    main()
