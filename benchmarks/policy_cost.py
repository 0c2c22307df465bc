"""What a decision of the shipped policy costs beside the decode step it controls, batch 1, context 512.

python benchmarks/policy_cost.py
"""

import json
import time
from collections.abc import Callable

import torch

import solm
from solm.budget import Ledger
from solm.decoding.midpass import MidPass, MidPassDriver
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
    result = {name: [median(values[1:]), min(values[1:]), max(values[1:])] for name, values in rounds.items()}
    if options.json:
        print(json.dumps({"milliseconds": result, "dtype": str(lm.model.dtype), "machine": machine()}))
        return
    for name, (middle, low, high) in result.items():
        print(f"{name:16} {middle:7.3f} ms ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
