"""Does the clock confirm budgets in time? Replies under budgets and dense ones in turn, by a stopwatch.

    python evidence/bench/clock.py --model FILE.gguf --policy auto --contexts 256,1024,4096 --rounds 5 --out clock.json

This machine is timed first, as at anybody's first budget in time; --policy none: the model is calibrated, too. Replies
have --tokens tokens, without guesses. `share`: milliseconds per token of a reply over those of the dense replies before
and after it. `told`: what the reply says that it realised. `miss`: share less what was asked for; its median and the
95th percentile of its size are over all rounds. Everything is done again beside one process that keeps a core busy.
Budgets that the model cannot reach are listed with the reason.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import solm
from evidence.bench.common import Kept, draw_text, finish, numbers, parser
from solm.core.errors import BudgetError
from solm.runtime.reply import Reply

BUDGETS = "speed=1.1,speed=1.2,speed=1.35,0.9,0.8,0.7"


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """Beside a process that computes all the time, where `busy`."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


class Replies:
    """Greedy replies of `tokens` tokens to one text ids [1, C], which is read once."""

    def __init__(self, lm: solm.LanguageModel, ids: Any, tokens: int):
        self.lm, self.ids, self.tokens = lm, ids, tokens
        self.read = lm.session(ids.shape[1])
        self.read.prefill(ids[:, :-1])

    def timed(self, budget: str | None) -> tuple[float, Reply]:
        """Milliseconds per token after the first one, and the reply."""
        length = self.ids.shape[1]
        stream = self.lm.stream(
            self.ids, budget=budget, policy="dense" if budget is None else None, guess="off", eos_token_id=-1,
            max_new_tokens=self.tokens, session=self.read.copy(length - 1, length + self.tokens),
        )  # fmt: skip
        next(stream)
        begun = time.perf_counter()
        count = sum(1 for _ in stream)
        return 1e3 * (time.perf_counter() - begun) / count, stream.reply


def confirmed(replies: Replies, budgets: list[str], rounds: int) -> dict[str, Any]:
    """By budget what was asked, told and taken in every round; `reason` where it cannot be reached."""
    found: dict[str, Any] = {}
    for budget in budgets:
        try:
            replies.timed(budget)
            found[budget] = {"asked": [], "told": [], "share": [], "ms": []}
        except BudgetError as error:
            found[budget] = {"reason": str(error)}
    before, _ = replies.timed(None)
    for _ in range(rounds):
        for one in (each for each in found if "asked" in found[each]):
            taken, reply = replies.timed(one)
            after, _ = replies.timed(None)
            arm = found[one]
            arm["asked"].append(reply.compute.requested["time"])
            arm["told"].append(reply.compute.realised["time"])
            arm["share"].append(2 * taken / (before + after))
            arm["ms"].append(taken)
            before = after
    return found


def missed(arms: list[dict[str, Any]]) -> dict[str, float]:
    """The median miss, and the 95th percentile of its size, of what was asked and of what was told."""
    told: dict[str, float] = {"replies": sum(len(arm["share"]) for arm in arms)}
    for name in ("asked", "told"):
        off = [share - meant for arm in arms for share, meant in zip(arm["share"], arm[name], strict=True)]
        told |= {f"{name}_median": statistics.median(off), f"{name}_95": float(np.percentile(np.abs(off), 95))}
    return told


def main() -> int:
    options_parser = parser(__doc__, "rounds")
    options_parser.add_argument("--policy", default="auto", help="of the model; none: it is calibrated")
    options_parser.add_argument("--budgets", default=BUDGETS)
    options_parser.add_argument("--contexts", default="256,1024,4096")
    options_parser.add_argument("--tokens", type=int, default=128, help="of every reply")
    options = options_parser.parse_args()
    lm = solm.load(options.model, None if options.policy == "none" else options.policy, backend="cpu")
    begun = time.perf_counter()
    lm = lm.timed()
    results: dict[str, Any] = {"seconds": time.perf_counter() - begun, "machines": {}}
    lines, kept = [f"timed in {results['seconds']:.1f} s"], Kept(options)
    for machine in ("quiet", "busy"):
        arms: list[dict[str, Any]] = []
        results["machines"][machine] = found = {"contexts": {}, "missed": {}}
        with neighbour(machine == "busy"):
            for context in map(int, numbers(options.contexts)):

                def measured(context: int = context) -> dict[str, Any]:
                    replies = Replies(lm, draw_text(lm, 1, context).numpy(), options.tokens)
                    return confirmed(replies, options.budgets.split(","), options.rounds)

                made = kept.get(f"{machine}, after {context:,} tokens", measured)
                found["contexts"][str(context)] = made
                for budget, arm in made.items():
                    words = arm.get("reason")
                    if words is None:
                        arms.append(arm)
                        asked, told, share = (statistics.median(arm[name]) for name in ("asked", "told", "share"))
                        words = f"asked {asked:.3f}, told {told:.3f}, took {share:.3f}"
                    lines.append(f"{machine}, after {context:,}, {budget}: {words}")
                    print(lines[-1], file=sys.stderr, flush=True)
        if arms:
            found["missed"] = missed(arms)
    results["clock"] = getattr(lm.timings, "measured_on", "")
    finish("clock", options, results, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
