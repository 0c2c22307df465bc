"""Do budgets in time hold on the clock? Milliseconds of steps under a policy's budgets, beside dense ones.

    python evidence/bench/budgets.py --model FILE.gguf --policy POLICY --data TEXT --budgets 0.8,0.7 --out budgets.json

Held-out text is decoded token by token, as greedy generation runs steps, and arms take turns on the same tokens.
`asked`: the share of the dense step's time; `realised`: what the steps spent by the policy's step times; `ratio`: the
median over rounds of the dense arm's milliseconds divided by these. With --beside steps of the same model in other
precisions take turns, too: dense ones, and those of constant settings.
"""

import statistics
import sys
import time
from typing import Any

import torch

import solm
from evidence.bench.common import finish, numbers, parser, spread
from evidence.bench.timed_engines import shown
from solm.backends.session import Session
from solm.evaluation.texts import token_stream

SETTINGS = {"dense": (1.0, 1.0, 16.0), "MLP 0.8": (1.0, 0.8, 16.0), "MLP 0.6": (1.0, 0.6, 16.0)}
"""Of other precisions."""
_STEPS = 64
"""Steps of a turn."""


def turn(session: Session, tokens: torch.Tensor, action: torch.Tensor | None) -> tuple[float, list[float]]:
    """Mean milliseconds of the steps that read `tokens`, and the mean shares [3] that they realised. action: None where
    a policy decides."""
    realised = torch.zeros(3, dtype=torch.float64)
    begun = time.perf_counter()
    for token in tokens[:_STEPS, None]:
        realised += session.step(token, action, exact_largest=1).realised[0, 0]
    return 1e3 * (time.perf_counter() - begun) / _STEPS, (realised / _STEPS).tolist()


def main() -> int:
    options_parser = parser(__doc__, "rounds")
    options_parser.add_argument("--data", required=True, help="a text file, as for `solm eval`")
    options_parser.add_argument("--policy", default="auto")
    options_parser.add_argument("--budgets", default="0.9,0.8,0.7", help="shares of the dense step's time")
    options_parser.add_argument("--beside", default="", help="other precisions that are timed, too")
    options_parser.add_argument("--context", type=int, default=1024)
    options = options_parser.parse_args()
    ours = solm.load(options.model, options.policy, backend="cpu")
    models = {"": ours} | {
        f"{precision}, ": solm.load(options.model, backend="cpu", precision=precision, sparsity="cpu")
        for precision in options.beside.split(",")
        if precision
    }
    offer, seen = ours.budgets(), options.context + _STEPS // 2
    if offer.measured is None:
        options_parser.error(f"--policy {options.policy}: it has no step times")
    budgets = {f"budget {share:g}": (share, ours.budget(share, seen)) for share in numbers(options.budgets)}
    fixed = {
        f"{of}{name}": (of, torch.tensor([keep], dtype=torch.float64))
        for of in models
        for name, keep in (SETTINGS if of else {"dense": SETTINGS["dense"]}).items()
    }
    whole = options.context + _STEPS
    text = token_stream(options.data, ours.tokenizer).spaced(
        options.rounds + 1, whole, torch.Generator().manual_seed(0)
    )
    times: dict[str, list[float]] = {name: [] for name in (*fixed, *budgets)}
    shares: dict[str, list[float]] = {name: [] for name in budgets}
    for number, row in enumerate(text[:, None]):
        parents = {of: lm.session(capacity=whole) for of, lm in models.items()}
        for parent in parents.values():
            parent.prefill(row[:, : options.context])
        for name in times:
            of, action = fixed.get(name, ("", None))
            session = parents[of].fork(1, _STEPS)
            if name in budgets:
                session.control(ours.policy(), torch.tensor([budgets[name][1].shares], dtype=torch.float64), _STEPS)
            ms, realised = turn(session, row[0, options.context :], action)
            if number:  # the first round warms up
                times[name].append(ms)
                if name in budgets:
                    shares[name].append(offer.measured.share(tuple(realised), seen))
    arms: dict[str, Any] = {}
    for name, found in times.items():
        ratios = [dense / ms for dense, ms in zip(times["dense"], found, strict=True)]
        arms[name] = {"ms": spread(found), "rounds": found, "ratio": statistics.median(ratios)}
        if name in budgets:
            arms[name] |= {"asked": budgets[name][0], "realised": statistics.mean(shares[name])}
    lines = [
        f"{name:14} {shown(arm['ms'], 2):>24} ms, {arm['ratio']:.2f} times as fast as dense"
        + (f", {arm['realised']:.3f} of the time by step times" if "realised" in arm else "")
        for name, arm in arms.items()
    ]
    finish("budgets", options, {"arms": arms}, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
