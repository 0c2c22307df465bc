"""Is the estimated best of 500 random schedules what 500 find? On the paper's size: 112 texts of 16 tokens.

    python benchmarks/best_of.py --data DATA

Runs every trial at every budget, and compares their best with what 8 of them, and 2 as in the README's table, predict
(`expected_best`). Every text is read once and its 500 schedules share that prefix. A file of finished trials per budget
lies beside the result, so an interrupted run goes on; fewer `--trials` tell what is there already.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solm.core.files import write_text
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import expected_best, paired_difference
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from texts import Texts

SPACE, CONTEXT, LENGTH, BATCH = "joint-27", 512, 16, 4
ROUND = 25
"""Trials of one pass."""
Found = dict[str, Any]


def extend(lm: LanguageModel, texts: Texts, net: float, trials: int, path: Path) -> Found:
    """What the file at `path` holds for net keep `net`, with trials run until there are `trials` [trials, S]."""
    assert lm.trained is not None
    policy = f"{lm.trained.config.weights_sha256} {lm.trained.config.network.model_dump_json()}"
    key = f"{policy} {hashlib.sha256(texts.windows.numpy().tobytes()).hexdigest()} {net}"
    found: Found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("key") != key:
        ours, realised = texts.run(lm.policy(), lm.budget(net).tensor(len(texts.windows))[:, None])
        static, _ = texts.run(lm.policy("static"), realised)
        found = {"key": key, "policy": ours[:, 0].tolist(), "static": static[:, 0].tolist()}
        found |= {"realised": realised.tolist(), "trials": []}
    while len(found["trials"]) < trials:
        seed = round(net * 1000) * 1000 + len(found["trials"]) // ROUND
        target = torch.tensor(found["realised"], dtype=torch.float64)
        more, _ = texts.run(lm.policy("random"), target.expand(-1, ROUND, 3), seed)
        found["trials"] += more.T.tolist()
        write_text(path, json.dumps(found))
        print(f"net keep {net:g}: {len(found['trials'])} trials", flush=True)
    return found


def summary(found: Found, net: float, count: int) -> Found:
    """What the first `count` trials at one budget say."""
    trials, ours, static = (np.array(found[name]) for name in ("trials", "policy", "static"))
    trials = trials[:count]
    means = trials.mean(1)
    best = trials[means.argmin()]
    told: Found = {
        "budget": net,
        "realised": float(np.mean(found["realised"])),
        "policy": float(ours.mean()),
        "static": float(static.mean()),
        "random_median": float(np.median(means)),
        "best": float(best.mean()),
    }
    for few in (2, 8):
        groups = [trials[start : start + few] for start in range(0, count - few + 1, few)]
        estimates = np.array([group.mean() - expected_best(group, count) for group in groups])
        told[f"best_estimated_from_{few}"] = {
            "mean": float(estimates.mean()), "sd": float(estimates.std()), "groups": len(groups),
            "low": float(np.percentile(estimates, 2.5)), "high": float(np.percentile(estimates, 97.5)),
        }  # fmt: skip
    told["policy_minus_best"] = paired_difference(ours, best)._asdict()
    told["policy_minus_static"] = paired_difference(ours, static)._asdict()
    told["trials_below_policy"] = int((means < ours.mean()).sum())
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default=f"builtin:smollm2-135m-{SPACE}")
    parser.add_argument("--budgets", default="0.45,0.6,0.75")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--sequences", type=int, default=112)
    parser.add_argument("--out", type=Path, default=Path("docs/results/best-of.json"))
    options = parser.parse_args()
    lm = load("builtin:smollm2-135m", options.policy)
    texts = Texts(lm, options.data, options.sequences, CONTEXT, LENGTH, BATCH)
    budgets = [float(part) for part in options.budgets.split(",")]
    points: dict[float, Found] = {}
    # Round by round, so that all budgets have about as many trials whenever it is interrupted.
    for trials in [*range(ROUND, options.trials, ROUND), options.trials]:
        for net in budgets:
            found = extend(lm, texts, net, trials, options.out.with_name(f"{options.out.stem}-{net:g}.partial"))
            points[net] = summary(found, net, trials)
    print(json.dumps(list(points.values()), indent=2))
    told = {"command": command_line(), "environment": environment(), "space": SPACE, "trials": options.trials}
    sizes = {"sequences": options.sequences, "context": CONTEXT, "tokens": LENGTH}
    write_text(options.out, json.dumps({**told, **sizes, "points": list(points.values())}, indent=2) + "\n")


if __name__ == "__main__":
    main()
