"""What budgets save and lose where rows are decoded together: milliseconds of a step and nats per token, by rows.

    python evidence/bench/batch.py --model FILE.gguf --data TEXT --contexts 150,4096 --rows 1,4,16 --out batch.json

Rows are of different texts, read densely up to the context. Steps: a figure is the median over rounds of a round's
median step, all settings in turn, as greedy generation runs them; `ratio` is the median over rounds of dense steps'
milliseconds divided by these. Losses: the next 64 tokens of every text, so many texts stepped together, against dense
steps, with a 95 % interval over texts; --rounds 0 measures them alone. `upper bits` reads the upper 4 bits of the MLP's
weights alone, and needs a file of integers.
"""

import statistics
import sys
from typing import Any

import numpy as np
import torch

import solm
from evidence.bench.common import STEPS, Kept, constant_step, finish, in_turns, numbers, parser, spread
from evidence.bench.timed_engines import shown, steps
from solm.backends.session import Session
from solm.evaluation.result import paired_difference
from solm.evaluation.texts import token_stream

SETTINGS = {
    "dense": (1.0, 1.0, 16), "MLP 0.8": (1.0, 0.8, 16), "MLP 0.6": (1.0, 0.6, 16), "upper bits": (1.0, 1.0, 4),
    "upper bits, MLP 0.8": (1.0, 0.8, 4), "pages 0.4": (0.4, 1.0, 16), "pages 0.2": (0.2, 1.0, 16),
    "pages 0.2, MLP 0.6": (0.2, 0.6, 16), "pages 0.2, upper bits": (0.2, 1.0, 4),
}  # fmt: skip
NESTED = solm.SparsityConfig.preset("nested")
"""Under which the bits of a setting are those of weights."""
_LENGTH = 64
"""Tokens that are scored."""


def together(parts: list[Session], capacity: int, keep: tuple[float, float, float]) -> Session:
    """Forks of single rows in one session, for steps under `keep`."""
    sparsity = NESTED if keep[2] < 16 else None
    found = parts[0].fork(1, capacity, sparsity)
    for part in parts[1:]:
        found.join(part.fork(1, capacity, sparsity))
    return found


def timed(parts: list[Session], last: torch.Tensor, options: Any) -> dict[str, dict[str, Any]]:
    """By setting `milliseconds` of a step of all rows after tokens [rows], and the `ratio` of dense steps to it."""
    turns = {}
    for name, keep in options.settings.items():
        fork = together(parts, STEPS, keep)
        turns[name] = lambda fork=fork, step=constant_step(fork, keep): statistics.median(steps(fork, step, last))
    taken = in_turns(turns, options.rounds)
    ratios = {name: statistics.median(np.array(taken["dense"]) / np.array(each)) for name, each in taken.items()}
    return {name: {"milliseconds": spread(each), "ratio": float(ratios[name])} for name, each in taken.items()}


def nats(parts: list[Session], texts: torch.Tensor, keep: tuple[float, float, float]) -> list[float]:
    """Per text, over its tokens texts [rows, _LENGTH + 1] but the first, stepped together."""
    session, total = together(parts, _LENGTH, keep), torch.zeros(len(parts))
    action = torch.tensor([keep], dtype=torch.float64).expand(len(parts), 3)
    for place in range(_LENGTH):
        logits = session.step(texts[:, place], action).logits[:, 0]
        total -= logits.log_softmax(-1).gather(1, texts[:, place + 1, None])[:, 0]
    return (total / _LENGTH).tolist()


def measured(lm: solm.LanguageModel, texts: torch.Tensor, context: int, options: Any) -> list[dict[str, Any]]:
    """Points of texts [N, context + _LENGTH + 1], by number of rows and setting."""
    parts = []
    for text in texts[:, None]:
        parts.append(lm.session(capacity=texts.shape[1]))
        parts[-1].prefill(text[:, :context])
    points: list[dict[str, Any]] = []
    for rows in options.rows:
        found = timed(parts[:rows], texts[:rows, context], options) if options.rounds else {}
        scored = {
            name: np.array([
                value
                for first in range(0, options.texts - rows + 1, rows)
                for value in nats(parts[first : first + rows], texts[first : first + rows, context:], keep)
            ])
            for name, keep in options.settings.items()
        }  # fmt: skip
        for name, each in scored.items():
            loss = paired_difference(each, scored["dense"]).model_dump()
            points.append(
                {
                    "context": context,
                    "rows": rows,
                    "setting": name,
                    **found.get(name, {}),
                    "texts": len(each),
                    "loss": loss,
                }
            )
    return points


def main() -> int:
    options_parser = parser(__doc__, "dtype", "rounds")
    options_parser.add_argument("--data", required=True, help="a text file, as for `solm eval`")
    options_parser.add_argument("--contexts", default="150", help="tokens that rows have read before")
    options_parser.add_argument("--rows", default="1,2,4,8,16", help="rows of a step")
    options_parser.add_argument(
        "--settings", default="; ".join(SETTINGS), help="some of these, separated by semicolons"
    )
    options_parser.add_argument("--texts", type=int, default=16, help="that are scored, by whole batches")
    options = options_parser.parse_args()
    options.rows = [int(count) for count in numbers(options.rows)]
    options.contexts = [int(count) for count in numbers(options.contexts)]
    asked = ["dense", *(name.strip() for name in options.settings.split(";"))]
    if unknown := [name for name in asked if name not in SETTINGS]:
        options_parser.error(f"--settings {unknown[0]!r}: must be among {'; '.join(SETTINGS)}")
    options.settings = {name: SETTINGS[name] for name in asked}
    if options.texts < max(options.rows):
        options_parser.error(f"--texts {options.texts}: must be at least {max(options.rows)}, the most of --rows")
    lm = solm.load(options.model, sparsity=solm.SparsityConfig.preset("cpu"), dtype=options.dtype, backend="cpu")
    stream, points, kept = token_stream(options.data, lm.tokenizer), [], Kept(options)
    for context in options.contexts:
        try:
            texts = stream.spaced(options.texts, context + _LENGTH + 1, torch.Generator().manual_seed(0))
        except solm.SolmError as error:
            options_parser.error(f"--contexts {context}: {error}")
        if len(texts) < options.texts:
            options_parser.error(f"--texts {options.texts}: {options.data} has {len(texts)} of {texts.shape[1]} tokens")
        points += kept.get(f"after {context:,} tokens", lambda: measured(lm, texts, context, options))  # noqa: B023
    lines = [f"{'context':>7}  {'rows':>4}  {'setting':22} {'ms':>24} {'ratio':>6}  loss"]
    for point in points:
        loss = point["loss"]
        times = f"{shown(point['milliseconds'], 1):>24} {point['ratio']:>6.2f}" if options.rounds else " " * 31
        lines.append(
            f"{point['context']:>7}  {point['rows']:>4}  {point['setting']:22} {times}  "
            f"{loss['value']:+.3f} [{loss['low']:+.3f}, {loss['high']:+.3f}]"
        )
    finish("batch", options, {"points": points}, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
