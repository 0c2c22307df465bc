"""What one row under a grammar costs a batch: milliseconds of a dense step with greedy rows, by what the head computes.

    python benchmarks/constrained.py --model FILE.gguf --rows 1,4,16 --rounds 7 --out constrained.json

`approximate`: no row needs more than its largest logit, and the head reads half of most of its numbers. `exact`: all
logits of all rows. `one_constrained`: one row follows a JSON schema; the head computes all of its logits, which are
then masked, and of the other rows what takes least time. Settings take turns; a figure is of the median steps
of all rounds.
"""

import statistics
import sys
from functools import partial
from typing import Any

import numpy as np
import torch

import solm
from common import STEPS, clock, draw_text, finish, in_turns, numbers, parser, spread
from solm.backends.session import Session
from solm.runtime.constraints import Constraint
from solm.runtime.grammars import Grammar
from timed_engines import SETTINGS, shown

_SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 100}
"""Long enough for all steps."""


def steps(session: Session, tokens: np.ndarray, approximate: np.ndarray, constraint: Constraint | None) -> float:
    """The median of `STEPS` steps, in milliseconds, after which the session forgets them. approximate: [N] bool, the
    rows that need only their largest logit; constraint: what the first row follows."""
    start, keep = session.lengths.clone(), torch.tensor([SETTINGS["dense"]] * len(tokens), dtype=torch.float64)
    following = None if constraint is None else constraint.copy()

    def step() -> None:
        logits = session.step(tokens, keep, exact_largest=approximate).logits[:, 0]
        if following is not None:
            following.said(int(following.masked(logits[0]).argmax()))
        for row in logits[following is not None :]:
            np.asarray(row).argmax()

    taken = [clock(step) for _ in range(STEPS)]
    session.truncate(start)
    return statistics.median(taken)


def main() -> int:
    options = parser(__doc__, "dtype", "rounds")
    options.add_argument("--context", type=int, default=150)
    options.add_argument("--rows", default="1,4,16", help="rows of a step")
    asked = options.parse_args()
    asked.rows = [int(count) for count in numbers(asked.rows)]
    lm = solm.load(asked.model, dtype=asked.dtype, backend="cpu")
    texts = draw_text(lm, max(asked.rows), asked.context + 1)
    constraint = lm.compiler.compile(Grammar.json_schema(_SCHEMA))
    points: list[dict[str, Any]] = []
    for rows in asked.rows:
        session = lm.session(capacity=asked.context + STEPS + 1)
        session.prefill(texts[:1, : asked.context])
        for text in texts[1:rows, None]:
            other = lm.session(capacity=asked.context + STEPS + 1)
            other.prefill(text[:, : asked.context])
            session.join(other)
        last, every = texts[:rows, asked.context].numpy(), np.ones(rows, dtype=bool)
        turns = {
            name: partial(steps, session, last, approximate, held)
            for name, approximate, held in (
                ("approximate", every, None), ("exact", ~every, None),
                ("one_constrained", np.arange(rows) > 0, constraint),
            )
        }  # fmt: skip
        taken = in_turns(turns, asked.rounds)
        points.append({"rows": rows} | {name: spread(each) for name, each in taken.items()})
    lines = [f"{'rows':>4} {'approximate':>24} {'exact':>24} {'one row constrained':>24}  ms"]
    for point in points:
        cells = " ".join(f"{shown(point[name], 1):>24}" for name in ("approximate", "exact", "one_constrained"))
        lines.append(f"{point['rows']:>4} {cells}")
    finish("constrained", asked, {"points": points}, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
