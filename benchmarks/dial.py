"""Quality against the clock: constant settings of the dial, and the policy at their budgets, on timed steps.

    python benchmarks/dial.py --data DATA --contexts 1024,8064

Every arm reads the same held-out texts on the compiled engine after the same prefill: for its quality all tokens at
once, with every logit, and for its time the first ones step by step as greedy generation does, which computes the
same but for unlikely logits. Arms take turns within a text. Losses and speedups are against dense int8. int4 rounds
no weight of a model whose weights lie on a 4-bit grid, as this one's do. Constant settings are dealt out to the
layers evenly (`even`) and by the policy's allocation (`static`). The policy gets, text by text, what `static` realised
(`policy`), or may spend more on one text than on the next (`flow`): its ledger goes on from text to text, and what it
is ahead or behind is made good over the next 2,048 tokens. It is compared with the constant setting of either kind
that loses least of all that take no more time than it does, and they with the best it makes of their time.
Differences are paired over texts, with 95 % intervals.

    python benchmarks/dial.py --data DATA --model runs/off-grid --policy runs/nested/policy --kinds nested \
        --dtype bfloat16 --contexts 1024 --texts 24 --clocked 10

With a policy for nested weights, settings say the share of their bits too: 1 for all of them, .25 for the high halves
at every step, between them for those at some of the steps, evenly spread (`even`, `static`) or where the policy says.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import solm
from policies import held_out
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.cpu.threads import one_torch_thread
from solm.backends.midpass import MidPassDriver
from solm.backends.passes import Extended, log_probabilities
from solm.backends.torch.session import Session
from solm.core.actions import FULL_BITS
from solm.core.budget import Ledger
from solm.core.files import write_text
from solm.core.nested import HIGH_BITS
from solm.core.sparsity import SparsityConfig
from solm.data.text import documents
from solm.data.windows import stream_of
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.statistics import paired_difference
from solm.policies.value_policy import ValuePolicy
from timing import MODEL, machine, median

KINDS = {
    "int8": ("int8", "auto"), "int4": ("int4", "auto"), "int4 with int8 KV cache": ("int4", "int8"),
    "nested": ("nested", "auto"),
}  # fmt: skip
CONSTANT = ("even", "static")
WHO, DENSE_ARM = (*CONSTANT, "policy", "flow"), "dense int8"
LENGTH, TIMED, FLOW = 128, 40, 2048
Setting = tuple[float, float, float]  # shares of pages, channels and bits
SETTINGS: list[Setting] = [(pages, mlp, 1.0) for pages in (1.0, 0.4, 0.2, 0.1) for mlp in (1.0, 0.8, 0.7, 0.6, 0.5)]
HALVED: list[Setting] = [
    (pages, mlp, bits) for pages in (1.0, 0.2) for mlp in (1.0, 0.8, 0.7) for bits in (1.0, 0.75, 0.5, 0.25)
]
LOSSES = (0.05, 0.15)


@dataclass
class Arm:
    """Per text: nats a token, mean milliseconds a step (steps of one arm may differ), realised shares [3]."""

    nats: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    realised: list[torch.Tensor] = field(default_factory=list)
    ledger: Ledger = field(default_factory=lambda: Ledger.empty(1))
    early: Ledger = field(default_factory=lambda: Ledger.empty(1))
    """Where a ledger goes on from text to text: what has been spent, and what the layers before the policy's have."""


def settle(arm: Arm, tokens: torch.Tensor, found: Extended) -> None:
    """Take down what reading tokens [1, T + 1] found."""
    arm.nats.append(-float(log_probabilities(found.logits, tokens[:, 1:]).mean()))
    arm.realised.append(found.realised[0].mean(0))


def clock(arm: Arm, tokens: torch.Tensor, step: Callable[[torch.Tensor], object]) -> None:
    times = []
    for token in tokens[0, :TIMED]:
        begun = time.perf_counter()
        step(token[None])
        times.append(1e3 * (time.perf_counter() - begun))
    arm.milliseconds.append(statistics.fmean(times))


def steps_at(setting: Setting) -> torch.Tensor:
    """Actions [LENGTH, 3] of that average: all bits or a quarter of them in turn, everything else at every step."""
    pages, mlp, bits = setting
    whole = (bits - HIGH_BITS / FULL_BITS) / (1 - HIGH_BITS / FULL_BITS)
    turns = (torch.arange(LENGTH + 1, dtype=torch.float64) * whole + 1e-9).floor().diff() > 0
    keep = torch.tensor([pages, mlp, FULL_BITS], dtype=torch.float64).repeat(LENGTH, 1)
    keep[~turns, 2] = HIGH_BITS
    return keep


def constant(
    arm: Arm, parent: Session, tokens: torch.Tensor, setting: Setting, clocked: bool, evenly: bool = False
) -> None:
    keep = steps_at(setting)

    def fork() -> Session:
        rows = parent.fork(1, LENGTH)
        if evenly:
            rows.sparsity = rows.sparsity.under(None)
        return rows

    settle(arm, tokens, fork().extend(tokens[:, :-1], keep[None]))
    if clocked:
        timed, coming = fork(), iter(keep.split(1))
        timed.approximate_tail = True
        clock(arm, tokens, lambda token: timed.step(token, next(coming)))


def decided(
    arm: Arm, parent: Session, tokens: torch.Tensor, policy: ValuePolicy, target: torch.Tensor, clocked: bool,
    horizon: int = LENGTH,
) -> None:  # fmt: skip
    spent, early = arm.ledger, arm.early

    def driver() -> MidPassDriver:
        rows = parent.fork(1, LENGTH)
        rows.ledger = spent
        return MidPassDriver(rows, policy, target, horizon, early)

    quality = driver()
    settle(arm, tokens, quality.extend(tokens[:, :-1])[0])
    if horizon > LENGTH:
        arm.ledger, arm.early = quality.session.ledger, quality.decisions.early
    if clocked:  # every arm is, after its pass for quality
        timed = driver()
        timed.session.approximate_tail = True
        clock(arm, tokens, timed.step)


def sparsity_of(lm: solm.LanguageModel, kind: str) -> SparsityConfig:
    """The policy's; beside it, dense int8 reads all bits of its weights whatever an action says."""
    if lm.sparsity.bits_site == "weights" and kind != "nested":
        return lm.sparsity.model_copy(update={"bits_site": "input"})
    return lm.sparsity


def measure(
    lm: solm.LanguageModel,
    engines: dict[str, Engine],
    windows: torch.Tensor,
    context: int,
    kinds: list[str],
    settings: list[Setting],
    clocked: int,
) -> dict[str, Arm]:
    """Arms by name: "dense int8", and kind of engine, who decides and the setting for all others. The first `clocked`
    texts are timed too."""
    choices = [(kind, setting) for kind in kinds for setting in settings]
    names = [DENSE_ARM, *(f"{kind} {who} {setting}" for kind, setting in choices for who in WHO)]
    arms = {name: Arm() for name in names}
    order = random.Random(0)
    policy = lm.policy("policy")
    for number, window in enumerate(windows.split(1)):
        parents = {}
        for kind, engine in engines.items():
            parents[kind] = CpuSession(lm.control, sparsity_of(lm, kind), engine, context)
            parents[kind].prefill(window[:, :context])
        tokens = window[:, context:]
        with one_torch_thread():
            timing = number < clocked
            constant(arms[DENSE_ARM], parents["int8"], tokens, (1.0, 1.0, 1.0), timing)
            for kind, setting in order.sample(choices, len(choices)):
                even, static, ours, flow = (arms[f"{kind} {who} {setting}"] for who in WHO)
                constant(even, parents[kind], tokens, setting, timing, evenly=True)
                constant(static, parents[kind], tokens, setting, timing)
                target = static.realised[-1][None]
                decided(ours, parents[kind], tokens, policy, target, timing)
                decided(flow, parents[kind], tokens, policy, target, timing, FLOW)
        print(f"context {context}: {number + 1} of {len(windows)} texts", flush=True)
    return arms


def summary(arms: dict[str, Arm], kinds: list[str], settings: list[Setting]) -> dict[str, object]:
    dense = arms[DENSE_ARM]
    rows = []
    for kind in kinds:
        for setting in settings:
            even, static = (arms[f"{kind} {who} {setting}"] for who in CONSTANT)
            row: dict[str, object] = {"kind": kind, "pages": setting[0], "mlp": setting[1], "bits": setting[2]}
            row["static_minus_even"] = paired_difference(np.array(static.nats), np.array(even.nats))._asdict()
            for who in WHO:
                arm = arms[f"{kind} {who} {setting}"]
                loss = paired_difference(np.array(arm.nats), np.array(dense.nats))
                faster = [a / b for a, b in zip(dense.milliseconds, arm.milliseconds, strict=True)]
                row[who] = {
                    "loss": loss._asdict(), "milliseconds": median(arm.milliseconds), "speedup": median(faster),
                    "realised": torch.stack(arm.realised).mean(0).tolist(),
                }  # fmt: skip
                if who in CONSTANT:
                    continue
                row[f"{who}_minus_static"] = paired_difference(np.array(arm.nats), np.array(static.nats))._asdict()
                ratios = [a / b for a, b in zip(arm.milliseconds, static.milliseconds, strict=True)]
                row[f"{who}_time_ratio"] = median(ratios)
                for rival in CONSTANT:
                    row[f"best_{rival}_in_time_of_{who}"] = against(arms, arm, f"{kind} {rival}", settings)
                    # The other way round: what the policy makes of the time that this constant setting takes.
                    row[f"{who}_in_time_of_{rival}"] = against(
                        arms, arms[f"{kind} {rival} {setting}"], f"{kind} {who}", settings
                    )
            rows.append(row)
    best = {
        f"speedup_at_loss_{limit}": {
            kind: {
                who: max((row[who]["speedup"] for row in rows if fits(row, kind, who, limit)), default=1.0)  # type: ignore[index]
                for who in WHO
            }
            for kind in kinds
        }
        for limit in LOSSES
    }
    return {
        "texts": len(dense.nats), "tokens": len(dense.nats) * LENGTH, "dense_milliseconds": median(dense.milliseconds),
        "dense_nats": float(np.mean(dense.nats)), **best, "settings": rows,
    }  # fmt: skip


def against(arms: dict[str, Arm], arm: Arm, name: str, settings: list[Setting]) -> dict[str, object] | None:
    """The setting of the arms `name` that loses least of all that take no more time than `arm`, and what `arm` loses
    less it; None where all take longer."""
    limit = median(arm.milliseconds)
    allowed = [setting for setting in settings if median(arms[f"{name} {setting}"].milliseconds) <= limit]
    if not allowed:
        return None
    setting = min(allowed, key=lambda setting: float(np.mean(arms[f"{name} {setting}"].nats)))
    rival = arms[f"{name} {setting}"]
    return {
        "pages": setting[0], "mlp": setting[1], "bits": setting[2], "milliseconds": median(rival.milliseconds),
        "this_minus_it": paired_difference(np.array(arm.nats), np.array(rival.nats))._asdict(),
    }  # fmt: skip


def fits(row: dict, kind: str, who: str, limit: float) -> bool:  # type: ignore[type-arg]
    return row["kind"] == kind and row[who]["loss"]["value"] <= limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with eval/; see policies.py.")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--policy", default=f"{MODEL}-native")
    parser.add_argument("--contexts", default="1024,8064")
    parser.add_argument("--texts", default="24,9", help="Texts at every context.")
    parser.add_argument("--clocked", default="12,4", help="So many of them are timed.")
    parser.add_argument("--settings", help="Pages and MLP of fewer settings, as 0.4,0.7;0.2,0.6.")
    parser.add_argument("--kinds", default="int8;int4;int4 with int8 KV cache", help="Separated by semicolons.")
    parser.add_argument("--out", type=Path, help="Write the JSON here, besides printing it.")
    options = parser.parse_args()
    kinds = options.kinds.split(";")
    lm = solm.load(options.model, options.policy, dtype=options.dtype)
    settings = HALVED if lm.sparsity.bits_site == "weights" else SETTINGS
    if options.settings:
        pairs = [[float(part) for part in pair.split(",")] for pair in options.settings.split(";")]
        settings = [(pages, mlp, 1.0) for pages, mlp in pairs]
    engines = {
        kind: Engine(lm.model, sparsity_of(lm, kind), precision, kv_cache_dtype=cache)
        for kind, (precision, cache) in KINDS.items()
        if kind in kinds or kind == "int8"
    }
    found = {}
    plan = [[int(part) for part in given.split(",")] for given in (options.contexts, options.texts, options.clocked)]
    for context, count, clocked in zip(*plan, strict=True):
        # Short texts end long before 8,000 tokens: books alone are left.
        long = [stream_of(documents(str(options.data / "eval/books_long.jsonl")), lm.tokenizer, "books_long")]
        streams = held_out(options.data, lm) if context < 4096 else long
        drawn = EvaluationSettings(budgets=(1.0,), texts=count, context=context, length=LENGTH)
        arms = measure(lm, engines, held_out_windows(streams, drawn), context, kinds, settings, clocked)
        found[str(context)] = summary(arms, kinds, settings)
    told = json.dumps({"machine": machine(), "model": options.model, "policy": options.policy, "contexts": found})
    if options.out:
        write_text(options.out, told + "\n")
    print(told)


if __name__ == "__main__":
    main()
