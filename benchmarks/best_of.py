"""Is the estimated best of N random schedules what N trials find? On the paper's size: 112 texts of 16 tokens.

    python benchmarks/best_of.py --data DATA --budget 0.6 --trials 500

Runs every trial, and compares their best with what 8 of them predict (`expected_best`), which is what the tables use.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from policies import held_out
from solm.decoding.api import load
from solm.decoding.drive import teacher_forced
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import expected_best
from solm.files import write_text

SPACE, CONTEXT, LENGTH, BATCH, AT_ONCE = "joint-27", 512, 16, 16, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default=f"builtin:smollm2-135m-{SPACE}")
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--sequences", type=int, default=112)
    parser.add_argument("--out", type=Path, default=Path("docs/results/best-of.json"))
    options = parser.parse_args()
    lm = load("builtin:smollm2-135m", options.policy)
    settings = EvaluationSettings(budgets=(1.0,), sequences=options.sequences, context=CONTEXT, length=LENGTH)
    windows = held_out_windows(held_out(options.data, lm), settings)
    target = lm.budget(options.budget).tensor(1)
    nats: dict[str, list[np.ndarray]] = {"policy": [], "static": [], "random": []}
    for index, batch in enumerate(windows.split(BATCH)):
        session = lm.session(capacity=CONTEXT)
        session.prefill(batch[:, :CONTEXT])
        tokens, goal = batch[:, CONTEXT:], target.expand(len(batch), 3)

        def run(name: str, goal: torch.Tensor, forks: int = 1, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
            rows = session.fork(forks, capacity=LENGTH + 16)  # noqa: B023
            episode = teacher_forced(
                rows, lm.policy(name), tokens.repeat_interleave(forks, 0),  # noqa: B023
                goal.repeat_interleave(forks, 0), torch.Generator().manual_seed(seed),
            )  # fmt: skip
            return -episode.log_probabilities.double().mean(1).view(-1, forks).numpy(), episode.realised.mean(1)

        ours, realised = run("policy", goal)
        nats["policy"].append(ours)
        nats["static"].append(run("static", realised)[0])
        trials = [
            run("random", realised, AT_ONCE, index * options.trials + first)[0]
            for first in range(0, options.trials, AT_ONCE)
        ]
        nats["random"].append(np.concatenate(trials, 1))
        print(f"{(index + 1) * BATCH} of {len(windows)} texts", flush=True)
    rows = {arm: np.concatenate(parts) for arm, parts in nats.items()}
    trials = rows["random"].T
    means = trials.mean(1)
    estimate = [
        means[start : start + 8].mean() - expected_best(trials[start : start + 8], options.trials)
        for start in range(0, options.trials - 7, 8)
    ]
    found = {
        "policy": float(rows["policy"].mean()),
        "static": float(rows["static"].mean()),
        "random_median": float(np.median(means)),
        "best_of_trials": float(means.min()),
        "estimated_from_8": {"mean": float(np.mean(estimate)), "sd": float(np.std(estimate))},
    }
    print(json.dumps(found, indent=2))
    told = {"command": command_line(), "environment": environment(), "space": SPACE, "budget": options.budget}
    sizes = {"trials": options.trials, "sequences": options.sequences, "tokens": LENGTH}
    write_text(options.out, json.dumps({**told, **sizes, "nats": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
