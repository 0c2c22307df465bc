"""What a decision of the shipped policy costs beside the decode step it controls, batch 1, context 512.

python benchmarks/policy_cost.py

On the native engine the policy is asked to spend everything, so that its steps compute what dense ones do, decision and
books on top; the two take turns, and `overhead` is the median of their ratio over rounds, less 1.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch

import solm
from solm.budget import Budget, Ledger
from solm.decoding.midpass import MidPass, MidPassDriver
from solm.decoding.native_session import NativeSession
from solm.native.engine import Engine
from solm.policies.artifact import TrainedPolicy
from solm.policies.values import ValuePolicy
from timing import MODEL, arguments, draw_text, machine, median

CONTEXT, STEPS = 512, 64


def milliseconds(run: Callable[..., object], *given: object) -> float:
    begun = time.perf_counter()
    run(*given)
    return 1e3 * (time.perf_counter() - begun)


def main() -> None:
    options = arguments(__doc__)
    trained = TrainedPolicy.from_pretrained(f"{MODEL}-joint-27")
    lm = solm.load(MODEL, trained, dtype=options.dtype)
    policy = trained.policy()
    assert isinstance(policy, ValuePolicy)
    ids = draw_text(lm, 1, CONTEXT + STEPS + 1)
    session = lm.session(capacity=CONTEXT)
    session.prefill(ids[:, :CONTEXT])
    target = lm.budget(0.6).tensor(1)
    rounds: dict[str, list[float]] = {"dense_step": [], "controlled_step": [], "network": [], "decision": []}
    for _ in range(options.rounds + 1):
        dense, ours = session.fork(1, capacity=STEPS + 16), session.fork(1, capacity=STEPS + 16)
        driver = MidPassDriver(ours, policy, target, STEPS)
        hidden, before = torch.randn(1, 1, 576, dtype=lm.model.dtype), torch.tensor([[policy.space.dense_index]])
        spare = MidPass(session.fork(1), policy, target, STEPS, Ledger.empty(1))
        taken: dict[str, list[float]] = {name: [] for name in rounds}
        for step in range(STEPS):
            token, table = ids[:, CONTEXT + step], policy.space.table
            taken["dense_step"].append(milliseconds(dense.step, token))
            taken["controlled_step"].append(milliseconds(driver.step, token))
            taken["network"].append(milliseconds(policy.gains, hidden, table[before]))
            taken["decision"].append(milliseconds(spare.decide, hidden, before))
        for name, values in taken.items():
            rounds[name].append(median(values))
    engines = {precision: native(lm, policy, ids, precision, options.rounds) for precision in ("int8", "int4")}
    result = {name: [median(values[1:]), min(values[1:]), max(values[1:])] for name, values in rounds.items()}
    if options.json:
        about = {"dtype": str(lm.model.dtype), "machine": machine()}
        print(json.dumps({"milliseconds": result, "native": engines, **about}))
        return
    for name, (middle, low, high) in result.items():
        print(f"{name:16} {middle:7.3f} ms ({low:.3f} to {high:.3f})")
    for precision, found in engines.items():
        print(f"native {precision}: dense {found['dense']:.3f} ms, policy adds {100 * found['overhead']:.1f} %")


def native(lm: Any, policy: ValuePolicy, ids: torch.Tensor, precision: str, rounds: int) -> dict[str, float]:
    """Medians of dense steps and of steps that the policy decides, milliseconds, and what the decisions add."""
    parent = NativeSession(lm.control, lm.semantics, Engine(lm.model, lm.semantics, precision), CONTEXT)
    parent.prefill(ids[:, :CONTEXT])
    dense, ours = [], []
    for _ in range(rounds + 1):
        plain, decided = (parent.fork(1, capacity=STEPS + 16) for _ in range(2))
        plain.shortlist = decided.shortlist = True  # as in greedy generation
        driver = MidPassDriver(decided, policy, Budget().tensor(1), STEPS)
        times: tuple[list[float], list[float]] = ([], [])
        for step in range(STEPS):
            token = ids[:, CONTEXT + step]
            times[0].append(milliseconds(plain.step, token))
            times[1].append(milliseconds(driver.step, token))
        dense.append(median(times[0]))
        ours.append(median(times[1]))
    ratios = [b / a for a, b in zip(dense[1:], ours[1:], strict=True)]
    return {"dense": median(dense[1:]), "policy": median(ours[1:]), "overhead": median(ratios) - 1}


if __name__ == "__main__":
    main()
