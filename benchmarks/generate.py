"""What `stream` takes per greedy token beside the steps themselves: choosing, text, trace and books. Batch 1.

python benchmarks/generate.py --rounds 5 --json

Milliseconds per token, medians over a reply of 160 tokens; steps alone, a dense reply and one that the native policy
decides take turns, on one engine and after the same prompt.
"""

import json
import time
from itertools import pairwise

import torch

import solm
from solm.backends.cpu.session import CpuSession
from timing import MODEL, arguments, draw_text, machine, median

CONTEXT, TOKENS = 512, 160


def steps(lm: solm.LanguageModel, ids: torch.Tensor) -> float:
    """Median of dense greedy steps, with nothing but the choice of the largest logit between them."""
    session = lm.session(capacity=CONTEXT + TOKENS)
    assert isinstance(session, CpuSession)
    session.approximate_tail = True
    logits, taken = session.prefill(ids), []
    for _ in range(TOKENS):
        token = torch.tensor([int(logits[0].float().numpy().argmax())])  # torch's threads would be in the engine's way
        begun = time.perf_counter()
        logits = session.step(token)
        taken.append(1e3 * (time.perf_counter() - begun))
    return median(taken)


def reply(lm: solm.LanguageModel, ids: torch.Tensor, schedule: str, budget: float | None) -> float:
    """Median time from one token of a reply to the next."""
    told = []
    # Without an end, so that every reply has as many tokens.
    for _ in lm.stream(ids, policy=schedule, budget=budget, max_new_tokens=TOKENS, eos_token_id=-1):
        told.append(time.perf_counter())
    return median([1e3 * (after - before) for before, after in pairwise(told[1:])])


def main() -> None:
    options = arguments(__doc__)
    found = {}
    for precision in ("int8", "int4"):
        lm = solm.load(MODEL, f"{MODEL}-native", backend="cpu", precision=precision)
        ids = draw_text(lm, 1, CONTEXT)
        rounds: dict[str, list[float]] = {"step": [], "generate_dense": [], "generate_policy": []}
        for _ in range(options.rounds + 1):
            rounds["step"].append(steps(lm, ids))
            rounds["generate_dense"].append(reply(lm, ids, "dense", None))
            rounds["generate_policy"].append(reply(lm, ids, "policy", 0.9))
        found[precision] = {name: median(values[1:]) for name, values in rounds.items()}
        beside = [a - b for a, b in zip(rounds["generate_dense"][1:], rounds["step"][1:], strict=True)]
        found[precision]["generate_dense_minus_step"] = median(beside)
        lm.detach()
    if options.json:
        print(json.dumps({"milliseconds": found, "machine": machine()}))
        return
    for precision, values in found.items():
        print(precision, ", ".join(f"{name} {value:.2f} ms" for name, value in values.items()))


if __name__ == "__main__":
    main()
