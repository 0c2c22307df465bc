"""Decode step at batch 1, milliseconds: the compiled engine, its dial, its policy, llama.cpp and stock transformers.

    python benchmarks/decode.py --contexts 64,1024,4096 --json

Interleaved rounds in one process, the same threads for everyone; a figure is the median over rounds of a round's median
step. Native steps run as greedy generation runs them: an int8 head is exact for every logit that comes near the largest
("every logit": for all of them). llama.cpp is measured where llama-cpp-python is installed (see peers.py), with and
without its fused attention, its caches in float16; `ratio_to_llama_cpp` is the faster of its two Q8_0 over our dense
int8 with its cache in bfloat16, by context; `ratio_with_every_logit` is the same with a head that computes all of them.
"""

import json
import time
from collections.abc import Callable

import torch

import peers
import solm
from solm.backends.cpu.engine import PRECISIONS, Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.cpu.weights import INTEGERS
from solm.backends.midpass import MidPassDriver
from solm.core.actions import DENSE
from timing import MODEL, arguments, draw_text, machine, median

DIAL = {
    "dense": DENSE, "mlp .6": (1.0, 0.6, 16), "mlp .4": (1.0, 0.4, 16), "pages .2, mlp .6": (0.2, 0.6, 16),
}  # fmt: skip
HALVED = {
    "high halves": (1.0, 1.0, 4), "high halves, mlp .8": (1.0, 0.8, 4), "high halves, pages .2": (0.2, 1.0, 4),
    "high halves, pages .2, mlp .8": (0.2, 0.8, 4),
}  # fmt: skip
EVERY, NESTED = "dense, every logit", "nested"
BYTES = " with int8 KV cache"
STEPS = 24
SPACE, BUDGET = "joint-27", 0.6  # of the policy


def per_step(run: Callable[[], object]) -> float:
    """Median milliseconds of a step."""
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begun))
    return median(times)


def main() -> None:
    options = arguments(__doc__, lambda parser: parser.add_argument("--contexts", default="64,1024,4096"))
    lm = solm.load(MODEL, f"{MODEL}-{SPACE}", dtype=options.dtype)
    policy = lm.policy("policy")
    target = lm.budget(BUDGET).tensor(1)
    contexts = [int(part) for part in options.contexts.split(",")]
    ids = draw_text(lm, 1, max(contexts) + 1)
    weights = lm.sparsity.model_copy(update={"bits_site": "weights"})
    engines = {name: Engine(lm.model, weights if name == NESTED else lm.sparsity, name) for name in PRECISIONS}
    for name in ("int8", "int4"):
        engines[name + BYTES] = Engine(lm.model, lm.sparsity, name, kv_cache_dtype="int8")
    found: dict[str, dict[str, float]] = {}
    for context in contexts:
        token = ids[:, context]
        runs: dict[str, Callable[[], object]] = {}
        stock = lm.session(capacity=context + STEPS * (options.rounds + 2))
        stock.prefill(ids[:, :context])
        runs["transformers, " + str(lm.model.dtype).removeprefix("torch.")] = lambda s=stock, t=token: s.step(t)
        for name, engine in engines.items():
            halves = engine.precision == NESTED
            parent = CpuSession(lm.control, weights if halves else lm.sparsity, engine, context)
            parent.prefill(ids[:, :context])
            more = HALVED if halves else {EVERY: DENSE} if engine.precision in INTEGERS else {}
            for arm, action in {**DIAL, **more}.items():
                keep = torch.tensor([action], dtype=torch.float64)
                fork = parent.fork(1, STEPS * (options.rounds + 2))
                fork.approximate_tail = arm != EVERY
                runs[f"native {name}, {arm}"] = lambda s=fork, k=keep, t=token: s.step(t, k)
            if halves:
                continue
            fork = parent.fork(1, STEPS * (options.rounds + 2))
            fork.approximate_tail = True
            driver = MidPassDriver(fork, policy, target, 1 << 20)
            runs[f"native {name}, policy {SPACE} at {BUDGET}"] = lambda d=driver, t=token: d.step(t)
        for precision in peers.PRECISIONS if peers.installed() else ():
            for flash in (False, True):
                runs[f"llama.cpp {precision}{', fused attention' if flash else ''}"] = peers.steps(
                    precision, ids[0, :context].tolist(), int(token), STEPS * (options.rounds + 2),
                    torch.get_num_threads(), flash,
                )  # fmt: skip
        rounds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds + 1):
            for name, run in runs.items():
                rounds[name].append(per_step(run))
        found[str(context)] = {name: median(values[1:]) for name, values in rounds.items()}
    if options.json:
        told: dict[str, object] = {"milliseconds": found, "machine": machine()}
        if peers.installed():
            for key, ours in (("ratio_with_every_logit", EVERY), ("ratio_to_llama_cpp", "dense")):
                told[key] = {
                    context: min(values["llama.cpp Q8_0"], values["llama.cpp Q8_0, fused attention"])
                    / values[f"native int8, {ours}"]
                    for context, values in found.items()
                }
        print(json.dumps(told))
        return
    for context, values in found.items():
        print(f"context {context}")
        for name, value in values.items():
            print(f"  {name:34} {value:7.2f} ms")


if __name__ == "__main__":
    main()
