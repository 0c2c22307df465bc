"""Quality against the clock: constant settings of the dial, and the policy at their budgets, on timed steps.

Every arm reads the same held-out texts on the cpu backend after the same prefill: for its quality all tokens, with
every logit, and for its time the first ones step by step as greedy generation does. Arms take turns within a text.
Losses and speedups are against dense int8. Constant settings give every layer the same (`uniform`) or follow the
policy's allocation (`allocated`). The policy gets, text by text, what `allocated` realised. It is compared with the
constant setting of either kind that loses least of all that take no more time than it does, and they with the best it
makes of their time. Differences are paired over texts, with 95 % intervals. With a policy for nested weights, settings
say the share of their bits too: 1 for all of them, 0.25 for the high halves at every step.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import solm
from common import clock, finish, held_out, numbers, policy_step, scored_under
from solm.core.actions import FULL_BITS
from solm.core.nested import HIGH_BITS
from solm.core.sparsity import SparsityConfig
from solm.evaluation.statistics import paired_difference
from solm.research.texts import windows_of

CONSTANT = ("uniform", "allocated")
WHO, DENSE = (*CONSTANT, "policy"), "dense"
TIMED = 40
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

    def take(self, found: Any) -> None:
        """Keep what scoring one row found."""
        self.nats.append(-float(found.log_probabilities.double().mean()))
        self.realised.append(found.realised[0].mean(0))

    def time(self, tokens: torch.Tensor, step: Callable[[torch.Tensor], object]) -> None:
        times = [clock(lambda token=token: step(token[None])) for token in tokens[0, :TIMED]]  # type: ignore[misc]
        self.milliseconds.append(statistics.fmean(times))


def steps_at(setting: Setting, length: int) -> torch.Tensor:
    """Actions [1, length, 3] of that average: all bits or a quarter of them in turn, the rest at every step."""
    pages, mlp, bits = setting
    whole = (bits - HIGH_BITS / FULL_BITS) / (1 - HIGH_BITS / FULL_BITS)
    turns = (torch.arange(length + 1, dtype=torch.float64) * whole + 1e-9).floor().diff() > 0
    keep = torch.tensor([pages, mlp, FULL_BITS], dtype=torch.float64).repeat(length, 1)
    keep[~turns, 2] = HIGH_BITS
    return keep[None]


def constant(arm: Arm, parent: Any, tokens: torch.Tensor, keep: torch.Tensor, timed: bool, how: SparsityConfig) -> None:
    quality, timing = (parent.fork(1, keep.shape[1], how) for _ in range(2))
    arm.take(quality.score(tokens, keep))
    if timed:
        coming = iter(keep[0].split(1))
        arm.time(tokens, lambda token: timing.step(token, next(coming), exact_largest=1))


def decided(arm: Arm, parent: Any, tokens: torch.Tensor, policy: Any, target: torch.Tensor, timed: bool) -> None:
    length = tokens.shape[1] - 1
    arm.take(scored_under(parent.fork(1, length), policy, tokens, target))
    if timed:
        arm.time(tokens, policy_step(parent.fork(1, length), policy, target, length))


def dial(options: argparse.Namespace) -> None:
    """Constant settings, and the policy at their budgets: losses, milliseconds and what wins at equal time."""
    kinds = options.kinds.split(",")
    lms = {}
    for kind in dict.fromkeys(["int8", *kinds]):
        precision, _, cache = kind.partition("+")
        lms[kind] = solm.load(
            options.model, options.policy, dtype=options.dtype, backend="cpu", precision=precision,
            kv_cache_dtype=cache or "auto",
        )  # fmt: skip
    halved = lms[kinds[0]].sparsity.bits_site == "weights"
    settings = HALVED if halved else SETTINGS
    if options.settings:
        pairs = [numbers(pair) for pair in options.settings.split(";")]
        settings = [(pages, mlp, 1.0) for pages, mlp in pairs]
    found = {}
    for context, texts, clocked in zip(options.contexts, options.texts, options.clocked, strict=True):
        streams = held_out(options.data, lms["int8"])
        if context >= 4096:
            streams = streams[1:2]  # short texts end long before: books alone are left
        windows = windows_of(streams, int(texts), int(context), options.length)
        arms = measure(lms, kinds, windows, int(context), settings, int(clocked))
        found[f"{context:g}"] = summary(arms, kinds, settings, options.length)
    lines = [
        f"after {context}, {row['kind']}, pages {row['pages']:g}, MLP {row['mlp']:g}, bits {row['bits']:g}: "
        + ", ".join(f"{who} {row[who]['loss']['value']:+.4f} nats, {row[who]['speedup']:.2f} x" for who in WHO)
        for context, told in found.items()
        for row in told["settings"]
    ]
    finish("dial", options, {"contexts": found}, lines)


def measure(
    lms: dict[str, solm.LanguageModel], kinds: list[str], windows: torch.Tensor, context: int,
    settings: list[Setting], clocked: int,
) -> dict[str, Arm]:  # fmt: skip
    """Arms by name: dense int8, and kind, who decides and the setting for all others."""
    choices = [(kind, setting) for kind in kinds for setting in settings]
    arms = {DENSE: Arm()} | {f"{kind} {who} {setting}": Arm() for kind, setting in choices for who in WHO}
    order = random.Random(0)
    length = windows.shape[1] - context - 1
    for number, window in enumerate(windows.split(1)):
        parents = {kind: lm.session(capacity=context) for kind, lm in lms.items()}
        for parent in parents.values():
            parent.prefill(window[:, :context])
        tokens, timed = window[:, context:], number < clocked
        everything = steps_at((1.0, 1.0, 1.0), length)
        constant(arms[DENSE], parents["int8"], tokens, everything, timed, lms["int8"].sparsity)
        for kind, setting in order.sample(choices, len(choices)):
            lm, parent, keep = lms[kind], parents[kind], steps_at(setting, length)
            uniform, allocated, ours = (arms[f"{kind} {who} {setting}"] for who in WHO)
            constant(uniform, parent, tokens, keep, timed, lm.sparsity.under(None))
            constant(allocated, parent, tokens, keep, timed, lm.sparsity)
            decided(ours, parent, tokens, lm.policy("policy"), allocated.realised[-1][None], timed)
        print(f"context {context}: {number + 1} of {len(windows)} texts", file=sys.stderr, flush=True)
    return arms


def summary(arms: dict[str, Arm], kinds: list[str], settings: list[Setting], length: int) -> dict[str, Any]:
    dense = arms[DENSE]
    rows = []
    for kind in kinds:
        for setting in settings:
            by_who = {who: arms[f"{kind} {who} {setting}"] for who in WHO}
            row: dict[str, Any] = {"kind": kind, "pages": setting[0], "mlp": setting[1], "bits": setting[2]}
            for who, arm in by_who.items():
                faster = [a / b for a, b in zip(dense.milliseconds, arm.milliseconds, strict=True)]
                row[who] = {
                    "loss": minus(arm, dense), "milliseconds": statistics.median(arm.milliseconds),
                    "speedup": statistics.median(faster), "realised": torch.stack(arm.realised).mean(0).tolist(),
                }  # fmt: skip
            row["allocated_minus_uniform"] = minus(by_who["allocated"], by_who["uniform"])
            row["policy_minus_allocated"] = minus(by_who["policy"], by_who["allocated"])
            for rival in CONSTANT:
                row[f"best_{rival}_in_time_of_policy"] = against(arms, by_who["policy"], f"{kind} {rival}", settings)
                # The other way round: what the policy makes of the time that this constant setting takes.
                row[f"policy_in_time_of_{rival}"] = against(arms, by_who[rival], f"{kind} policy", settings)
            rows.append(row)
    best = {
        f"speedup_at_loss_{limit}": {
            kind: {
                who: max(
                    (row[who]["speedup"] for row in rows if row["kind"] == kind and row[who]["loss"]["value"] <= limit),
                    default=1.0,
                )
                for who in WHO
            }
            for kind in kinds
        }
        for limit in LOSSES
    }
    return {
        "texts": len(dense.nats), "tokens": len(dense.nats) * length, "dense_nats": float(np.mean(dense.nats)),
        "dense_milliseconds": statistics.median(dense.milliseconds), **best, "settings": rows,
    }  # fmt: skip


def minus(ours: Arm, theirs: Arm) -> dict[str, float]:
    return paired_difference(np.array(ours.nats), np.array(theirs.nats))._asdict()


def against(arms: dict[str, Arm], arm: Arm, name: str, settings: list[Setting]) -> dict[str, Any] | None:
    """The setting of the arms `name` that loses least of all that take no more time than `arm`, and what `arm` loses
    less it; None where all take longer."""
    times = {setting: statistics.median(arms[f"{name} {setting}"].milliseconds) for setting in settings}
    allowed = [setting for setting in settings if times[setting] <= statistics.median(arm.milliseconds)]
    if not allowed:
        return None
    setting = min(allowed, key=lambda setting: float(np.mean(arms[f"{name} {setting}"].nats)))
    told = {"pages": setting[0], "mlp": setting[1], "bits": setting[2], "milliseconds": times[setting]}
    return told | {"this_minus_it": minus(arm, arms[f"{name} {setting}"])}
