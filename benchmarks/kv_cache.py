"""What an int8 KV cache costs in quality: the same text read by the compiled engine beside either cache.

    python benchmarks/kv_cache.py --texts 8

Nats per token of 128 tokens after 1,024, with all pages and with a fifth of them. Differences are paired over texts,
with 95 % intervals.
"""

import json

import numpy as np
import torch

import solm
from solm.backends.cpu.engine import KV_CACHE_DTYPES, Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.passes import log_probabilities
from solm.evaluation.statistics import paired_difference
from timing import MODEL, arguments, draw_text, machine

CONTEXT, LENGTH, PAGES = 1024, 128, (1.0, 0.2)


def main() -> None:
    options = arguments(
        __doc__,
        lambda parser: parser.add_argument("--texts", type=int, default=24),
        lambda parser: parser.add_argument("--precision", default="int4", help="of the weights: int8 or int4"),
    )
    lm = solm.load(MODEL, dtype=options.dtype)
    windows = draw_text(lm, options.texts, CONTEXT + LENGTH + 1)
    nats: dict[tuple[str, float], list[float]] = {}
    for dtype in KV_CACHE_DTYPES:
        engine = Engine(lm.model, lm.sparsity, options.precision, kv_cache_dtype=dtype)
        for window in windows.split(1):
            parent = CpuSession(lm.control, lm.sparsity, engine, CONTEXT)
            parent.prefill(window[:, :CONTEXT])
            known = window[:, CONTEXT:]
            for pages in PAGES:
                keep = torch.tensor([pages, 1, 16], dtype=torch.float64).expand(1, LENGTH, 3)
                found = parent.fork(1, LENGTH).extend(known[:, :-1], keep)
                nats.setdefault((dtype, pages), []).append(-float(log_probabilities(found.logits, known[:, 1:]).mean()))
    rows = [
        {"pages": pages, "auto": nats["auto", pages], "int8": nats["int8", pages],
         "int8_minus_auto": paired_difference(np.array(nats["int8", pages]), np.array(nats["auto", pages]))._asdict()}
        for pages in PAGES
    ]  # fmt: skip
    if options.json:
        print(json.dumps({"precision": options.precision, "context": CONTEXT, "points": rows, "machine": machine()}))
        return
    for row in rows:
        print(f"pages {row['pages']:g}: int8 minus {options.precision}'s own cache {row['int8_minus_auto']}")


if __name__ == "__main__":
    main()
