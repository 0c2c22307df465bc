"""Is the estimated best of many random schedules what many find? On the paper's size: 112 texts of 16 tokens.

Runs every trial at every budget, and compares their best with what 8 of them predict (`expected_best`), and 2 of them
as in the tables of results. Every text is read once and all its schedules share that prefix.

Example: solm study best-of --data wiki.txt,books.jsonl --trials 500 --out best-of.json
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from solm.core.parts import Parts
from solm.evaluation.arms import static_arms
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import expected_best, paired_difference
from solm.research.studies import Numbers, Progress, StudyOptions
from solm.research.texts import Texts, windows_of
from solm.runtime.language_model import LanguageModel

_ROUND, _BATCH = 25, 4
"""Trials of one pass, and texts."""
_FEW = (2, 8)


class Options(StudyOptions):
    policy: str = Field("builtin:smollm2-135m-joint-27", description="Folder or hub id of a trained policy.")
    budgets: Numbers = Field((0.45, 0.6, 0.75), description="Budgets, as net keeps.")
    trials: int = Field(500, ge=max(_FEW), description="Random schedules per text.")
    texts: int = Field(112, ge=1, description="Number of texts.")
    length: int = Field(16, ge=1, description="Controlled tokens that are scored.")


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    return measure(options.load(options.policy), options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `points`, by budget the nats per token of policy, baseline and random trials, their best, its estimates
    from few trials, and how many trials are better than the policy."""
    assert lm.trained is not None
    streams = options.streams(lm)
    windows = windows_of(streams, options.texts, options.context, options.length, options.seed)
    settings = options.model_dump(mode="json") | {"data_fingerprint": [stream.fingerprint for stream in streams]}
    parts = Parts(
        partial, [{name: value for name, value in settings.items() if name != "trials"}, lm.trained.config.digest]
    )
    texts = Texts(lm, windows, options.context, _BATCH)
    arm, static = next(iter(static_arms(lm, lm.space).items()))
    rounds = -(-options.trials // _ROUND)

    def first(net: float) -> dict[str, Any]:
        ours, realised = texts.run(lm.policy("policy"), lm.budget(f"keep={net}").tensor(len(windows))[:, None])
        theirs, _ = texts.run(static.policy, realised)
        return {"policy": ours[:, 0].tolist(), arm: theirs[:, 0].tolist(), "realised": realised.tolist()}

    def trials(net: float, turn: int) -> list[list[float]]:
        realised = torch.tensor(parts.get(f"{net}", lambda: first(net))["realised"], dtype=torch.float64)
        seed = (options.seed * 1000 + round(net * 1000)) * 1000 + turn
        return texts.run(lm.policy("random"), realised.expand(-1, _ROUND, 3), seed)[0].T.tolist()

    # Round by round, so that all budgets have about as many trials whenever it is interrupted.
    for turn in range(rounds):
        progress("rounds of trials", turn, rounds)
        for net in options.budgets:
            parts.get(f"{net}/{turn}", lambda net=net, turn=turn: trials(net, turn))  # type: ignore[misc]
    progress("rounds of trials", rounds, rounds)
    points = []
    for net in options.budgets:
        rows = [row for turn in range(rounds) for row in parts.get(f"{net}/{turn}", list)]
        points.append({"budget": net} | summary(parts.get(f"{net}", dict), np.array(rows[: options.trials]), arm))
    return record("best-of", settings, {"points": points})


def summary(found: dict[str, Any], trials: np.ndarray, arm: str) -> dict[str, Any]:
    """What trials [trials, texts] at one budget say, beside the policy and the baseline `arm` on the same texts."""
    ours, static = np.array(found["policy"]), np.array(found[arm])
    means = trials.mean(1)
    best = trials[means.argmin()]
    told: dict[str, Any] = {
        "realised": float(np.mean(found["realised"])), "policy": float(ours.mean()), arm: float(static.mean()),
        "random_median": float(np.median(means)), "best": float(best.mean()),
    }  # fmt: skip
    for few in _FEW:
        groups = [trials[start : start + few] for start in range(0, len(trials) - few + 1, few)]
        estimates = np.array([group.mean() - expected_best(group, len(trials)) for group in groups])
        told[f"best_estimated_from_{few}"] = {
            "mean": float(estimates.mean()), "sd": float(estimates.std()), "groups": len(groups),
            "low": float(np.percentile(estimates, 2.5)), "high": float(np.percentile(estimates, 97.5)),
        }  # fmt: skip
    told["policy_minus_best"] = paired_difference(ours, best)._asdict()
    told[f"policy_minus_{arm}"] = paired_difference(ours, static)._asdict()
    told["trials_below_policy"] = int((means < ours.mean()).sum())
    return told


def lines(found: Record) -> list[str]:
    return [
        f"net keep {point['budget']:g}: best of {found.settings['trials']} {point['best']:.4f} nats/token, from "
        + ", ".join(f"{few} trials {point[f'best_estimated_from_{few}']['mean']:.4f}" for few in _FEW)
        + f"; policy {point['policy']:.4f}, {point['trials_below_policy']} trials are better"
        for point in found.results["points"]
    ]


def plot(found: Record, kind: Kind) -> bytes:
    """The best of all trials and its estimates from few, by budget."""
    figure, axes = blank()
    points = found.results["points"]
    budgets = np.array([point["budget"] for point in points])
    axes.plot(budgets, [point["best"] for point in points], "k_", ms=14, label=f"best of {found.settings['trials']}")
    for place, few in enumerate(_FEW):
        told = [point[f"best_estimated_from_{few}"] for point in points]
        middle, low, high = (np.array([one[end] for one in told]) for end in ("mean", "low", "high"))
        axes.errorbar(
            budgets + 0.004 * (place + 1), middle, yerr=[middle - low, high - middle], fmt="o", capsize=3,
            label=f"estimated from {few}",
        )  # fmt: skip
    axes.set_xlabel("net keep")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return picture(figure, kind)
