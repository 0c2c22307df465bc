"""Milliseconds of a greedy step that chooses MLP channels by thresholds, and of one that keeps exact numbers of them.

    python benchmarks/thresholds.py --model FILE.gguf --data TEXT --context 1024 --rounds 20 --out thresholds.json

Held-out text is decoded token by token, because what thresholds keep depends on the token. Both ways use the same
allocation, that of the policy. Arms take turns in every round, on the same tokens.
"""

import statistics
import sys
import time
from typing import Any

import torch

import solm
from common import finish, parser
from solm.backends.session import Session
from solm.data.windows import token_stream

LEVELS = (0.8, 0.6, 0.4)
_STEPS = 32
"""Steps of a turn."""


def main() -> int:
    options_parser = parser(__doc__, "rounds")
    options_parser.add_argument("--data", required=True, help="a text file, as for `solm eval`")
    options_parser.add_argument("--policy", default="auto", help="whose allocation and thresholds are used")
    options_parser.add_argument("--context", type=int, default=1024)
    options = options_parser.parse_args()
    lm = solm.load(options.model, options.policy, backend="cpu")
    whole = options.context + _STEPS + 1
    text = token_stream(options.data, lm.tokenizer).spaced(options.rounds + 1, whole, torch.Generator().manual_seed(0))
    arms = {"dense": (1.0, lm.sparsity)}
    for level in LEVELS:
        arms |= {f"thresholds {level:g}": (level, lm.sparsity), f"exact {level:g}": (level, lm.sparsity.exact)}
    times: dict[str, list[float]] = {name: [] for name in arms}
    shares: dict[str, list[float]] = {name: [] for name in arms}
    for number, row in enumerate(text[:, None]):
        parent = lm.session(capacity=options.context)
        parent.prefill(row[:, : options.context])
        for name, (level, sparsity) in arms.items():
            session = parent.fork(1, _STEPS, sparsity=sparsity)
            ms, kept = turn(session, row[0, options.context :], level)
            if number:  # the first round warms up
                times[name].append(statistics.median(ms))
                shares[name].append(statistics.mean(kept))
    results: dict[str, Any] = {"arms": {}}
    for name, found in times.items():
        level = arms[name][0]
        by = {"level": level, "ms": statistics.median(found), "rounds": found, "share": statistics.mean(shares[name])}
        results["arms"][name] = by
    lines = [f"{name:15} {by['ms']:.2f} ms, {by['share']:.3f} of the channels" for name, by in results["arms"].items()]
    finish("thresholds", options, results, lines)
    return 0


def turn(session: Session, tokens: torch.Tensor, level: float) -> tuple[list[float], list[float]]:
    """Milliseconds and realised shares of channels of the steps that read `tokens`."""
    action = torch.tensor([[1.0, level, 16.0]], dtype=torch.float64)
    ms, kept = [], []
    for token in tokens[:_STEPS, None]:
        begun = time.perf_counter()
        found = session.step(token, action, exact_largest=1)
        ms.append(1e3 * (time.perf_counter() - begun))
        kept.append(float(found.realised[0, 0, 1]))
    return ms, kept


if __name__ == "__main__":
    sys.exit(main())
