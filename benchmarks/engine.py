"""Decode steps on the cpu backend, milliseconds: dense, sparse and decided by a policy, beside installed peers.

    python benchmarks/engine.py --contexts 64,1024,4096 --precision int8,int4 --json
    python benchmarks/engine.py --policy builtin:smollm2-135m-cpu --peers --out docs/results/engine.json

Interleaved rounds in one process, the same threads for everyone; a figure is the median over rounds of a round's median
step. Steps run as greedy generation runs them: an int8 head is exact for every logit that comes near the largest. A
precision such as `int8+int8` has its KV cache in int8. With a policy, `policy 1` decides and then spends everything:
what it takes longer than `dense` is what a decision costs. Peers: stock transformers, and llama.cpp where
llama-cpp-python is installed, with and without its fused attention, its caches in float16.
"""

from collections.abc import Callable

import torch

import peers
import solm
from common import STEPS, constant_step, draw_text, finish, interleaved, numbers, parser, policy_step, spread

SETTINGS = {
    "dense": (1.0, 1.0, 16), "mlp 0.8": (1.0, 0.8, 16), "mlp 0.6": (1.0, 0.6, 16), "pages 0.2": (0.2, 1.0, 16),
    "pages 0.2, mlp 0.6": (0.2, 0.6, 16),
}  # fmt: skip
HALVES = {"high halves": (1.0, 1.0, 4), "high halves, pages 0.2, mlp 0.8": (0.2, 0.8, 4)}
"""Of nested weights."""

Name = tuple[str, str, str, str]
"""Engine, precision, KV cache, setting."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--contexts", default="64,1024,4096", help="tokens seen before the steps")
    options.add_argument(
        "--precision", default="int8,int4", help="float32, bfloat16, int8, int4, nested; +int8: KV cache"
    )
    options.add_argument("--rows", default="1", help="rows of a step")
    options.add_argument("--policy", help="also the steps that this policy decides")
    options.add_argument("--budgets", default="1,0.6", help="net keeps of the policy")
    options.add_argument("--peers", action="store_true", help="also transformers and llama.cpp, of one row")
    asked = options.parse_args()
    models: dict[tuple[str, str], solm.LanguageModel] = {}
    for kind in asked.precision.split(","):
        precision, _, cache = kind.partition("+")
        sparsity = None if asked.policy else solm.SparsityConfig.preset("nested" if precision == "nested" else "cpu")
        models[precision, cache or "auto"] = solm.load(
            asked.model, asked.policy, sparsity=sparsity, dtype=asked.dtype, backend="cpu", precision=precision,
            kv_cache_dtype=cache or "auto",
        )  # fmt: skip
    stock = solm.load(asked.model, dtype=asked.dtype, backend="torch") if asked.peers else None
    room = STEPS * (asked.rounds + 2)
    points = []
    for context in map(int, numbers(asked.contexts)):
        for rows in map(int, numbers(asked.rows)):
            ids = draw_text(next(iter(models.values())), rows, context + 1)
            runs: dict[Name, Callable[[], object]] = {}
            for (precision, cache), lm in models.items():
                for setting, run in settings(lm, ids, precision, asked.policy, numbers(asked.budgets), room).items():
                    runs["cpu", precision, cache, setting] = run
            if stock is not None and rows == 1:
                runs |= of_peers(stock, ids, room)
            for (engine, precision, cache, setting), taken in interleaved(runs, asked.rounds).items():
                points.append({
                    "context": context, "rows": rows, "engine": engine, "precision": precision, "kv_cache": cache,
                    "setting": setting, "milliseconds": spread(taken),
                })  # fmt: skip
    lines = [
        f"{p['context']:6} tokens, {p['rows']} rows  {p['engine']:12} {p['precision']:10} {p['setting']:32} "
        f"{p['milliseconds']['median']:8.3f} ms"
        for p in points
    ]
    finish("engine", asked, {"points": points}, lines)


def settings(
    lm: solm.LanguageModel, ids: torch.Tensor, precision: str, policy: str | None, budgets: list[float], room: int
) -> dict[str, Callable[[], object]]:
    """Calls that decode the last of ids [rows, context + 1] once more after the others, by setting."""
    parent = lm.session(capacity=ids.shape[1])
    parent.prefill(ids[:, :-1])
    steps = {
        name: constant_step(parent.fork(1, room), keep)
        for name, keep in (SETTINGS | (HALVES if precision == "nested" else {})).items()
    }
    for net in budgets if policy else ():
        target = lm.budget(f"keep={net}").tensor(len(ids))
        steps[f"policy {net:g}"] = policy_step(parent.fork(1, room), lm.policy("policy"), target, room)
    return {name: lambda step=step: step(ids[:, -1]) for name, step in steps.items()}


def of_peers(stock: solm.LanguageModel, ids: torch.Tensor, room: int) -> dict[Name, Callable[[], object]]:
    """The same of the stock model, whose dense steps are transformers' own, and of llama.cpp."""
    session = stock.session(capacity=ids.shape[1] + room)
    session.prefill(ids[:, :-1])
    dtype = str(stock.model.dtype).removeprefix("torch.")
    runs: dict[Name, Callable[[], object]] = {
        ("transformers", dtype, "auto", "dense"): lambda: session.step(ids[:, -1])
    }
    for precision in peers.PRECISIONS if peers.installed() else ():
        for fused in (False, True):
            setting = "dense, fused attention" if fused else "dense"
            runs["llama.cpp", precision, "auto", setting] = peers.steps(
                precision, ids[0, :-1].tolist(), int(ids[0, -1]), room, torch.get_num_threads(), fused
            )
    return runs


if __name__ == "__main__":
    main()
