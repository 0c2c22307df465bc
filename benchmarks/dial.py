"""Quality against the clock: constant settings of the dial, and the policy at their budgets, on timed steps.

    python benchmarks/dial.py --data DATA --precision int8-screened --contexts 1024,8064

Every arm steps through the same held-out texts on the native engine, token by token, after the same prefill; a step's
time and the log-probability of the next token come from the same call. Arms take turns within a text. The dense arm has
the exact head, all others the one of --precision. The policy gets, text by text, what the constant setting realised.
Differences are paired over texts, with 95 % intervals.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import solm
from policies import held_out
from solm.actions import DENSE
from solm.data.text import documents
from solm.data.windows import stream_of
from solm.decoding.midpass import MidPassDriver
from solm.decoding.native_session import NativeSession
from solm.decoding.session import Session
from solm.evaluation.perplexity import EvaluationSettings, held_out_windows
from solm.evaluation.statistics import paired_difference
from solm.files import write_text
from solm.native.engine import SCREENED, Engine
from timing import MODEL, machine, median

LENGTH = 128
SETTINGS = [(pages, mlp) for pages in (1.0, 0.4, 0.2, 0.1) for mlp in (1.0, 0.8, 0.7)]
LOSSES = (0.05, 0.15)


@dataclass
class Arm:
    """Per text: nats a token, median milliseconds a step, realised shares [3]."""

    nats: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    realised: list[torch.Tensor] = field(default_factory=list)


def run(tokens: torch.Tensor, arm: Arm, session: Session, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Step through tokens [1, T + 1] by `step`, which processes a token [1] and returns the logits of the next."""
    times, nats = [], []
    for now, following in zip(tokens[0, :-1], tokens[0, 1:], strict=True):
        begun = time.perf_counter()
        logits = step(now[None])
        times.append(1e3 * (time.perf_counter() - begun))
        nats.append(float(torch.logsumexp(logits[0], -1) - logits[0, following]))
    arm.nats.append(float(np.mean(nats)))
    arm.milliseconds.append(median(times))
    arm.realised.append(session.ledger.average[0])


def measure(lm: solm.LanguageModel, exact: Engine, windows: torch.Tensor, context: int) -> dict[str, Arm]:
    names = ["dense", *(f"{who} {setting}" for setting in SETTINGS for who in ("static", "policy"))]
    arms = {name: Arm() for name in names}
    order = random.Random(0)
    policy = lm.policy("policy")
    for number, window in enumerate(windows.split(1)):
        parent = lm.session(capacity=context)
        dense = NativeSession(lm.control, lm.semantics, exact, context)
        for session in (parent, dense):
            session.prefill(window[:, :context])
        tokens = window[:, context:]
        torch.set_num_threads(1)  # the engine has the others: see solm.decoding.threads

        def constant(name: str, parent: Session, keep: tuple[float, float, float]) -> None:
            session = parent.fork(1, LENGTH)
            action = torch.tensor([keep], dtype=torch.float64)
            run(tokens, arms[name], session, lambda token: session.step(token, action))  # noqa: B023

        constant("dense", dense, DENSE)
        for setting in order.sample(SETTINGS, len(SETTINGS)):
            constant(f"static {setting}", parent, (*setting, 16))
            session = parent.fork(1, LENGTH)
            target = arms[f"static {setting}"].realised[-1][None]
            driver = MidPassDriver(session, policy, target, LENGTH)
            run(tokens, arms[f"policy {setting}"], session, lambda token, d=driver: d.step(token)[0])
        torch.set_num_threads(exact.sizes.threads)
        print(f"context {context}: {number + 1} of {len(windows)} texts", flush=True)
    return arms


def summary(arms: dict[str, Arm]) -> dict[str, object]:
    dense = arms["dense"]
    base = median(dense.milliseconds)
    rows = []
    for setting in SETTINGS:
        static, ours = arms[f"static {setting}"], arms[f"policy {setting}"]
        row: dict[str, object] = {"pages": setting[0], "mlp": setting[1]}
        for who, arm in (("static", static), ("policy", ours)):
            loss = paired_difference(np.array(arm.nats), np.array(dense.nats))
            faster = [a / b for a, b in zip(dense.milliseconds, arm.milliseconds, strict=True)]
            row[who] = {
                "loss": loss._asdict(), "milliseconds": median(arm.milliseconds), "speedup": median(faster),
                "realised": torch.stack(arm.realised).mean(0).tolist(),
            }  # fmt: skip
        row["policy_minus_static"] = paired_difference(np.array(ours.nats), np.array(static.nats))._asdict()
        row["policy_time_ratio"] = median([a / b for a, b in zip(ours.milliseconds, static.milliseconds, strict=True)])
        rows.append(row)
    best = {
        f"speedup_at_loss_{limit}": {
            who: max((row[who]["speedup"] for row in rows if row[who]["loss"]["value"] <= limit), default=1.0)  # type: ignore[index]
            for who in ("static", "policy")
        }
        for limit in LOSSES
    }
    return {
        "texts": len(dense.nats), "tokens": len(dense.nats) * LENGTH, "dense_milliseconds": base,
        "dense_nats": float(np.mean(dense.nats)), **best, "settings": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with eval/; see policies.py.")
    parser.add_argument("--policy", default=f"{MODEL}-native")
    parser.add_argument("--precision", default="int8-screened")
    parser.add_argument("--contexts", default="1024,8064")
    parser.add_argument("--texts", default="24,9", help="Texts at every context.")
    parser.add_argument("--out", type=Path, help="Write the JSON here, besides printing it.")
    options = parser.parse_args()
    lm = solm.load(MODEL, options.policy, backend="native", precision=options.precision)
    exact = Engine(lm.model, lm.semantics, options.precision.removesuffix(SCREENED))
    found = {}
    counts = [int(part) for part in options.texts.split(",")]
    for context, count in zip((int(part) for part in options.contexts.split(",")), counts, strict=True):
        # Short texts end long before 8,000 tokens: books alone are left.
        long = [stream_of(documents(str(options.data / "eval/books_long.jsonl")), lm.tokenizer, "books_long")]
        streams = held_out(options.data, lm) if context < 4096 else long
        settings = EvaluationSettings(budgets=(1.0,), sequences=count, context=context, length=LENGTH)
        found[str(context)] = summary(measure(lm, exact, held_out_windows(streams, settings), context))
    about = {"machine": machine(), "policy": options.policy, "precision": options.precision}
    told = json.dumps({**about, "contexts": found})
    if options.out:
        write_text(options.out, told + "\n")
    print(told)


if __name__ == "__main__":
    main()
