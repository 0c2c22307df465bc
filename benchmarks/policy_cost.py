"""What a decision of the shipped policy costs beside the decode step it controls, batch 1, context 512.

python benchmarks/policy_cost.py

On the compiled engine the policy is asked to spend everything, so that its steps compute what dense ones do, decision and
books on top; the two take turns in going first, `added` is the median of what a step takes longer, in milliseconds, and
`overhead` that in shares of the dense step.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch

import solm
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.midpass import MidPass, MidPassDriver
from solm.core.budget import Budget, Ledger
from solm.policies.artifact import TrainedPolicy
from solm.policies.value_policy import ValuePolicy
from timing import MODEL, arguments, draw_text, machine, median

CONTEXT, STEPS = 512, 64
SPACES = ("joint-27", "fine")


def milliseconds(run: Callable[..., object], *given: object) -> float:
    begun = time.perf_counter()
    run(*given)
    return 1e3 * (time.perf_counter() - begun)


def main() -> None:
    options = arguments(__doc__)
    trained = TrainedPolicy.from_pretrained(MODEL)
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
            taken["network"].append(milliseconds(policy.costs, hidden, table[before]))
            taken["decision"].append(milliseconds(spare.decide, hidden, before))
        for name, values in taken.items():
            rounds[name].append(median(values))
    engines = [native(lm, space, ids, precision, options.rounds) for precision in ("int8", "int4") for space in SPACES]
    result = {name: [median(values[1:]), min(values[1:]), max(values[1:])] for name, values in rounds.items()}
    if options.json:
        about = {"dtype": str(lm.model.dtype), "machine": machine()}
        print(json.dumps({"milliseconds": result, "cpu": engines, **about}))
        return
    for name, (middle, low, high) in result.items():
        print(f"{name:16} {middle:7.3f} ms ({low:.3f} to {high:.3f})")
    for found in engines:
        name, middle = f"native {found['precision']}, {found['space']}", 100 * found["overhead"]
        print(f"{name:22} dense {found['dense']:.3f} ms, policy adds {middle:.1f} %")


def native(lm: Any, space: str, ids: torch.Tensor, precision: str, rounds: int) -> dict[str, Any]:
    """Medians of dense steps and of steps that the policy decides, milliseconds, and what the decisions add."""
    policy = TrainedPolicy.from_pretrained(f"{MODEL}-{space}").policy()
    parent = CpuSession(lm.control, lm.sparsity, Engine(lm.model, lm.sparsity, precision), CONTEXT)
    parent.prefill(ids[:, :CONTEXT])
    dense: list[float] = []
    added: list[float] = []
    for turn in range(rounds + 1):
        plain, decided = (parent.fork(1, capacity=STEPS + 16) for _ in range(2))
        plain.approximate_tail = decided.approximate_tail = True  # as in greedy generation
        steps = {"dense": plain.step, "policy": MidPassDriver(decided, policy, Budget().tensor(1), STEPS).step}
        for step in range(STEPS):
            order = ("dense", "policy") if step % 2 else ("policy", "dense")
            taken = {name: milliseconds(steps[name], ids[:, CONTEXT + step]) for name in order}
            if turn:
                dense.append(taken["dense"])
                added.append(taken["policy"] - taken["dense"])
    overhead = median(added) / median(dense)
    return {
        "precision": precision,
        "space": space,
        "dense": median(dense),
        "added": median(added),
        "overhead": overhead,
    }


if __name__ == "__main__":
    main()
