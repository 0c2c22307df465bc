"""Scored tokens per second of a static arm against the stock model's dense prefill, in alternating rounds.

SmolLM2-135M, 8 sequences, 512 tokens of context and 128 scored ones, joint-8 at net keep 0.65. The stock model is
timed on the same 640 tokens a row; scoring needs logits at every scored position, so that is what it is compared
with; its rate with the last logits alone is printed too.

    python benchmarks/evaluate.py
    python benchmarks/evaluate.py --json --dtype float32
"""

import json
import time

import torch

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Static
from solm.runtime.drive import teacher_forced
from timing import arguments, load, machine, median, peak_memory_gib

CONTEXT, LENGTH, SEQUENCES, SPACE, NET = 512, 128, 8, "joint-8", 0.65


def main() -> None:
    options = arguments(__doc__)

    space = ActionSpace.preset(SPACE)
    lm, windows = load(options.dtype, SparsityConfig(), SEQUENCES, CONTEXT + LENGTH + 1)
    session = lm.session(capacity=CONTEXT)
    session.prefill(windows[:, :CONTEXT])
    target = Budget.from_net(NET, space).tensor(SEQUENCES)
    tokens = SEQUENCES * LENGTH

    def seconds(run) -> float:  # type: ignore[no-untyped-def]
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    def static() -> None:
        teacher_forced(session.fork(1, capacity=LENGTH + 16), Static(space), windows[:, CONTEXT:], target)

    @torch.no_grad()
    def stock(keep: int) -> None:
        # As many rows at a time as give as many tokens a pass as the scored arm has.
        lm.model(windows[:2, : tokens // 2], use_cache=False, logits_to_keep=keep)

    static(), stock(0), stock(1)
    rounds = [(seconds(static), seconds(lambda: stock(0)), seconds(lambda: stock(1))) for _ in range(options.rounds)]
    stock_tokens = 2 * min(windows.shape[1], tokens // 2)
    scored = [tokens / r[0] for r in rounds]
    all_logits = [stock_tokens / r[1] for r in rounds]
    last_logits = [stock_tokens / r[2] for r in rounds]
    result = {
        "scored_tokens_per_second": median(scored),
        "stock_prefill_all_logits": median(all_logits),
        "stock_prefill_last_logits": median(last_logits),
        "ratio": median([a / b for a, b in zip(scored, all_logits, strict=True)]),
        "ratio_to_last_logits": median([a / b for a, b in zip(scored, last_logits, strict=True)]),
        "peak_memory_gib": peak_memory_gib(),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"static arm, {SEQUENCES} x {LENGTH} tokens after {CONTEXT}, {SPACE}, {result['dtype']}")
    print(f"  scored tokens per second          {result['scored_tokens_per_second']:.0f}")
    print(f"  stock prefill, all logits         {result['stock_prefill_all_logits']:.0f}  ratio {result['ratio']:.2f}")
    print(
        f"  stock prefill, last logits only   {result['stock_prefill_last_logits']:.0f}  "
        f"ratio {result['ratio_to_last_logits']:.2f}"
    )


if __name__ == "__main__":
    main()
