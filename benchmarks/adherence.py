"""How far what a policy spends is from what was asked for, per axis, for targets over the whole reachable range.

    python benchmarks/adherence.py --data DATA

A target is reachable where it lies between what the lowest and the highest level of its axis realise on the run. 12
targets per space and length: every axis takes 12 evenly spaced shares of its range, ends included, in an order of its
own (a Latin hypercube), so that joint spaces see low shares of one axis beside high ones of another. Static rounds to
whole steps and nothing else, and so tells what the grid allows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from solm.core.actions import AXES, ActionSpace
from solm.core.files import write_text
from solm.core.shares import axis_levels
from solm.evaluation.result import command_line, environment
from solm.policies.artifact import TrainedPolicy
from solm.policies.schedules import Static
from solm.policies.unroll import unroll
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from texts import Texts

SPACES = ("attention-fine", "mlp-fine", "joint-8", "joint-27")
TARGETS, TEXTS, CONTEXT, BATCH = 12, 24, 512, 4
BOUNDS = {128: 0.01, 16: 0.02}
"""Steps of a run, and by how much it may miss."""


def targets(lm: LanguageModel, space: ActionSpace, length: int) -> torch.Tensor:
    """[TARGETS, 3] shares."""
    kv_length = CONTEXT + 1 + torch.arange(length)[None]
    found = []
    for axis, levels in enumerate(axis_levels(space, kv_length, lm.sparsity, lm.control.shapes)):
        low, high = levels[..., 0].mean(), levels[..., -1].mean()
        order = torch.randperm(TARGETS, generator=torch.Generator().manual_seed(axis))
        found.append(low + (high - low) * order / (TARGETS - 1))
    return torch.stack(found, 1)


def gaps(spent: torch.Tensor, asked: torch.Tensor, space: ActionSpace, bound: float) -> dict[str, dict[str, float]]:
    """|spent - asked| [..., 3] per axis that has a choice, over all runs."""
    gap = (spent - asked).abs()
    return {
        name: {
            "mean": float(gap[..., axis].mean()),
            "max": float(gap[..., axis].max()),
            "within_bound": float((gap[..., axis] <= bound).double().mean()),
        }
        for axis, name in enumerate(AXES)
        if space.shape[axis] > 1
    }


def measure(lm: LanguageModel, texts: Texts, trained: TrainedPolicy, length: int) -> dict[str, Any]:
    """Policy and static, in runs of `length` steps over all texts and targets."""
    space, bound = trained.config.space, BOUNDS[length]
    asked = targets(lm, space, length)
    _, spent = texts.run(trained.policy(), asked.expand(TEXTS, TARGETS, 3))
    # Static does not read the text.
    rows = texts.read[0][0].fork(TARGETS)
    schedule = unroll(
        Static(space), rows.kv_length, rows.sparsity, lm.control.shapes, length, asked.repeat(rows.rows // TARGETS, 1),
        rows.ledger,
    )  # fmt: skip
    static = schedule.ledger.average[:TARGETS]
    found = {"policy": gaps(spent, asked, space, bound), "static": gaps(static, asked, space, bound)}
    return {"length": length, "bound": bound, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default="builtin:smollm2-135m")
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--out", type=Path, default=Path("docs/results/adherence.json"))
    options = parser.parse_args()
    trained = TrainedPolicy.from_pretrained(options.policy)
    lm = load("builtin:smollm2-135m", trained)
    points: list[dict[str, Any]] = []
    for length in BOUNDS:
        texts = Texts(lm, options.data, TEXTS, CONTEXT, length, BATCH)
        for name in options.spaces.split(","):
            there = trained.with_space(ActionSpace.preset(name))
            points.append({"space": name, **measure(lm, texts, there, length)})
            print(json.dumps(points[-1]), flush=True)
            told = {"command": command_line(), "environment": environment()}
            sizes = {"targets": TARGETS, "texts": TEXTS, "context": CONTEXT}
            write_text(options.out, json.dumps({**told, **sizes, "points": points}, indent=2) + "\n")


if __name__ == "__main__":
    main()
