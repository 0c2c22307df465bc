"""Quality on held-out text: policies against baselines, the dial against the clock, allocations, adherence to budgets.

    python evidence/bench/quality.py policies --data DATA --oracle mlp-fine,joint-27 --folder docs/results/policies
    python evidence/bench/quality.py dial --data DATA --contexts 1024 --texts 24 --clocked 12 --out dial.json
    python evidence/bench/quality.py allocations --data DATA --allocations layers.json heads.json --out allocation.json
    python evidence/bench/quality.py adherence --data DATA --out adherence.json

DATA is a folder with eval/wikitext.valid.tokens.txt, eval/books_long.jsonl, eval/hellaswag_val.jsonl (held out) and
train/ (text that tuned is chosen on). Budgets were fixed before any of the held-out text was scored.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import solm
from common import finish, held_out, numbers, parser, tuning_text
from dial import dial
from solm.core.actions import AXES, FULL_BITS, ActionSpace
from solm.core.budget import Ledger
from solm.core.cost import axis_levels
from solm.core.files import resumable, write_text
from solm.core.sparsity import SparsityConfig
from solm.evaluation.baselines import BASELINES, BaselineRequest
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.show import verdict
from solm.evaluation.statistics import paired_difference
from solm.policies.artifact import TrainedPolicy
from solm.policies.schedules import Static
from solm.policies.unroll import unroll
from solm.research.texts import Texts, windows_of
from solm.training.allocate import read_allocation

# Net keeps; in a space with one axis, (share + 2) / 3. Static schedules lose 0.03 to 0.5 nats a token at these.
BUDGETS = {
    "attention-fine": (0.735, 0.77),
    "mlp-fine": (0.82, 0.855),
    "bits-fine": (0.76, 0.777),
    "joint-8": (0.48, 0.6),
    "joint-27": (0.45, 0.6),
    "joint-336": (0.45, 0.6),
    "fine": (0.35, 0.4, 0.45, 0.5),
}
# In a fine space two mixed levels are the constant action already.
RIVALS = {"mlp-fine": ("constant", "teal"), "fine": ()}
BOUNDS = {128: 0.01, 16: 0.02}
"""Steps of a run, and by how much it may miss its budget."""
TARGETS = 12
ACTIONS = ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (1.0, 0.5), (1.0, 0.6), (1.0, 0.7), (1.0, 0.8), (0.2, 0.6), (0.4, 0.7))


def policies(options: argparse.Namespace) -> None:
    """One policy in several action spaces against every baseline; a result file for each space."""
    trained = TrainedPolicy.from_pretrained(options.policy)
    for name in options.spaces.split(","):
        lm = solm.load(
            options.model, trained.with_space(ActionSpace.preset(name)), dtype=options.dtype, backend="torch"
        )
        tuning = tuning_text(options.data, lm)
        request = BaselineRequest(lm, lm.space, tuning, options.context)
        with resumable(options.folder / f"{name}.json") as partial:
            result = evaluate(
                lm,
                held_out(options.data, lm),
                EvaluationSettings(
                    budgets=BUDGETS[name], texts=options.texts, context=options.context, length=options.length,
                    trials=options.trials, oracle=name in options.oracle.split(","),
                ),
                partial=partial,
                progress=lambda done, total, name=name: print(f"{name}: {done}/{total}", file=sys.stderr, flush=True),
                tuning=tuning,
                rivals={arm: BASELINES[arm](request) for arm in RIVALS.get(name, ("constant",))},
            )  # fmt: skip
            write_text(options.folder / f"{name}.json", result.model_dump_json(indent=2) + "\n")
        print("\n".join(f"{name}, {line}" for line in verdict(result)))
        lm.detach()


def allocations(options: argparse.Namespace) -> None:
    """Constant actions with every layer alike and by each allocation, on the same text: what was lost and read."""
    lm = solm.load(
        options.model, sparsity=SparsityConfig.preset(options.sparsity), dtype=options.dtype, backend="torch"
    )
    ways = {"uniform": None} | {path.stem: read_allocation(path) for path in options.allocations}
    windows = windows_of(held_out(options.data, lm), options.texts, options.context, options.length)
    found: dict[tuple[str, float, float], list[torch.Tensor]] = {}
    for some in windows.split(8):
        session = lm.session(capacity=options.context)
        session.prefill(some[:, : options.context])
        for attention, mlp in ((1.0, 1.0), *ACTIONS):
            keep = torch.tensor([attention, mlp, FULL_BITS], dtype=torch.float64)
            for way, allocation in ways.items():
                room = options.length + lm.sparsity.page_size
                rows = session.fork(1, room, lm.sparsity.under(allocation))
                scored = rows.score(some[:, options.context :], keep.expand(len(some), options.length, 3))
                nats = -scored.log_probabilities.double().mean(1, keepdim=True).cpu()
                part = torch.cat([nats, scored.realised.mean(1)[:, :2]], 1)
                found.setdefault((way, attention, mlp), []).append(part)
    taken = {key: torch.cat(parts).numpy() for key, parts in found.items()}
    dense = taken["uniform", 1.0, 1.0][:, 0]
    points = []
    for attention, mlp in ACTIONS:
        point: dict[str, Any] = {"attention": attention, "mlp": mlp}
        for way in ways:
            rows = taken[way, attention, mlp]
            point[way] = {"loss": float((rows[:, 0] - dense).mean()), "realised": rows[:, 1:].mean(0).tolist()}
            if way != "uniform":
                difference = paired_difference(rows[:, 0], taken["uniform", attention, mlp][:, 0])
                point[f"{way}_minus_uniform"] = difference._asdict()
        points.append(point)
    lines = [
        f"attention {point['attention']:g}, MLP {point['mlp']:g}: "
        + ", ".join(f"{way} {point[way]['loss']:+.3f} (read {point[way]['realised'][0]:.3f})" for way in ways)
        for point in points
    ]
    finish("allocation", options, {"points": points}, lines)


def adherence(options: argparse.Namespace) -> None:
    """How far what is spent is from what was asked for, per axis, over the whole range that can be reached.

    Every axis takes 12 evenly spaced shares of its range, ends included, each in an order of its own (a Latin
    hypercube). A static schedule rounds to whole steps and nothing else, and so tells what the grid allows.
    """
    trained = TrainedPolicy.from_pretrained(options.policy)
    lm = solm.load(options.model, trained, dtype=options.dtype, backend="torch")
    points = []
    for length, bound in BOUNDS.items():
        windows = windows_of(held_out(options.data, lm), options.texts, options.context, length)
        texts = Texts(lm, windows, options.context, batch=4)
        for name in options.spaces.split(","):
            there = trained.with_space(ActionSpace.preset(name))
            asked = reachable(lm, there.config.space, options.context, length)
            _, spent = texts.run(there.policy(), asked.expand(len(windows), TARGETS, 3))
            first = torch.full((TARGETS,), options.context + 1)
            schedule = unroll(
                Static(there.config.space), first, lm.sparsity, lm.shapes, length, asked, Ledger.empty(TARGETS)
            )
            static = schedule.ledger.average
            arm = "uniform" if lm.sparsity.allocation is None else "allocated"
            points.append({"space": name, "length": length, "bound": bound} | {
                who: gaps(shares, asked, there.config.space, bound)
                for who, shares in (("policy", spent), (arm, static))
            })  # fmt: skip
    lines = [
        f"{point['space']}, {point['length']} steps, {axis}: mean gap {gap['mean']:.4f}, largest {gap['max']:.4f}"
        for point in points
        for axis, gap in point["policy"].items()
    ]
    finish("adherence", options, {"targets": TARGETS, "points": points}, lines)


def reachable(lm: solm.LanguageModel, space: ActionSpace, context: int, length: int) -> torch.Tensor:
    """Targets [TARGETS, 3] between what the lowest and the highest level of every axis realise on a run."""
    kv_length = context + 1 + torch.arange(length)[None]
    found = []
    for axis, levels in enumerate(axis_levels(space, kv_length, lm.sparsity, lm.shapes)):
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


def main() -> None:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = whole.add_subparsers(required=True)
    shared = parser(None, "dtype")
    shared.add_argument("--data", type=Path, required=True)
    shared.add_argument("--context", type=int, default=512)
    shared.add_argument("--length", type=int, default=128)

    def part(run: Any, texts: str) -> argparse.ArgumentParser:
        made = parts.add_parser(
            run.__name__, parents=[shared], conflict_handler="resolve", add_help=False, description=run.__doc__
        )
        made.set_defaults(run=run)
        made.add_argument("--texts", type=int if run is not dial else numbers, default=texts)
        return made

    some = part(policies, "204")
    some.add_argument("--policy", default="builtin:smollm2-135m")
    some.add_argument("--spaces", default=",".join(BUDGETS))
    some.add_argument("--trials", type=int, default=2)
    some.add_argument("--oracle", default="mlp-fine,joint-27", help="spaces in which the ceiling is measured too")
    some.add_argument("--folder", type=Path, default=Path("docs/results/policies"))
    some = part(allocations, "48")
    some.add_argument("--allocations", type=Path, nargs="+", required=True, help="files of `solm allocate`")
    some.add_argument("--sparsity", default="cpu")
    some = part(adherence, "24")
    some.add_argument("--policy", default="builtin:smollm2-135m")
    some.add_argument("--spaces", default="attention-fine,mlp-fine,joint-8,joint-27")
    some = part(dial, "24,9")
    some.add_argument("--policy", default="builtin:smollm2-135m-cpu")
    some.add_argument("--contexts", type=numbers, default="1024,8064")
    some.add_argument("--clocked", type=numbers, default="12,4", help="so many of the texts are timed")
    some.add_argument("--settings", help="pages and MLP of fewer settings, as 0.4,0.7;0.2,0.6")
    some.add_argument("--kinds", default="int8,auto,auto+int8", help="precisions; +int8: with an int8 KV cache")
    asked = whole.parse_args()
    run = asked.run
    del asked.run
    run(asked)


if __name__ == "__main__":
    main()
