"""A server that gets 1, 2 and 4 times the requests that it can answer, with and without the governor.

Capacity is measured first: requests per second of a dense server whose rows are all in use. Then requests arrive at
random moments at multiples of that rate, whatever becomes of earlier ones, for `--seconds` per rate. A reply is good
where it was complete, its first token came within `--first` seconds, and its time per token met the objective, which is
`--slack` times the 95th percentile at capacity. Servers run one after the other, and each gets the same arrivals.

    python benchmarks/shedding.py --model FILE.gguf --policy builtin:qwen2.5-coder-0.5b-instruct --seconds 120
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from common import finish, parser
from serve import Load, free_port, server, some_texts

ARMS = {
    "no governor": [],
    "governor": ["--slo-tpot-ms", "{objective:.3f}", "--slo-floor", "{floor}"],
}


def command(options: Any, *more: str) -> list[str]:
    fixed = ["--model", options.model, "--policy", options.policy, "--backend", "cpu", "--name", "served"]
    queue = ["--max-rows", str(options.rows), "--max-waiting", str(options.waiting), "--prefix-mb", "0"]
    return [sys.executable, "-m", "solm.cli", "serve", *fixed, *queue, *more]


async def arrivals(load: Load, rate: float, seconds: float, texts: list[str], seed: int) -> list[dict[str, Any] | None]:
    """Replies to requests at `rate` per second over `seconds`; None for one that was refused."""
    rng = np.random.default_rng(seed)
    moments = np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))

    async def at(moment: float, text: str) -> dict[str, Any] | None:
        await asyncio.sleep(moment)
        try:
            return await load.one(client, text)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 429:
                raise
            return None

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        asked = [at(moment, f"{index}: {texts[index % len(texts)]}") for index, moment in enumerate(moments)]
        return list(await asyncio.gather(*asked))


def summary(replies: list[dict[str, Any] | None], seconds: float, objective: float, first: float) -> dict[str, float]:
    """Rates over `seconds`, in which the requests arrived and were answered."""
    served = [reply for reply in replies if reply is not None]
    per_token = 1000 * np.array([reply["per_token"] for reply in served] or [np.nan])
    until_first = np.array([reply["first"] for reply in served] or [np.nan])
    good = (per_token <= objective) & (until_first <= first)
    nets = [reply["net"] for reply in served if reply["net"] is not None]
    return {
        "offered": len(replies), "served": len(served), "refused": len(replies) - len(served),
        "served_per_second": len(served) / seconds, "goodput_per_second": float(good.sum()) / seconds,
        "tokens_per_second": sum(reply["tokens"] for reply in served) / seconds,
        "first_p50_s": float(np.percentile(until_first, 50)), "first_p95_s": float(np.percentile(until_first, 95)),
        "tpot_p50_ms": float(np.percentile(per_token, 50)), "tpot_p95_ms": float(np.percentile(per_token, 95)),
        "net_keep": float(np.mean(nets)) if nets else float("nan"),
    }  # fmt: skip


def measured(options: Any) -> dict[str, Any]:
    """Capacity, and by arm and multiple of it what became of the requests."""
    texts = some_texts(options.rows * 8, options.context)
    budget = {"budget": 1.0, "policy": "policy"}
    arms: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with server(command(options), free_port(), log) as address:
            load = Load(address, "served", {"policy": "dense"}, options.tokens)
            asyncio.run(load.run(options.rows, 1, texts))
            begun = time.perf_counter()
            full = asyncio.run(load.run(options.rows, options.each, texts * options.each))
            capacity = options.rows * options.each / (time.perf_counter() - begun)
        objective = full["tpot_p95_ms"] * options.slack
        for name, more in ARMS.items():
            shown = [part.format(objective=objective, floor=options.floor) for part in more]
            for factor in options.factors:
                with server(command(options, *shown), free_port(), log) as address:
                    load = Load(address, "served", budget, options.tokens)
                    asyncio.run(load.run(options.rows, 1, texts))
                    begun = time.perf_counter()
                    replies = asyncio.run(arrivals(load, factor * capacity, options.seconds, texts, round(10 * factor)))
                    seconds = time.perf_counter() - begun
                found = summary(replies, seconds, objective, options.first)
                arms.setdefault(name, {})[f"{factor:g}"] = found | {"seconds": seconds}
    return {"capacity_per_second": capacity, "objective_ms": objective, "full": full, "arms": arms}


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = parser(__doc__)
    options.add_argument("--policy", default="builtin:smollm2-135m-cpu")
    options.add_argument("--factors", type=float, nargs="+", default=[1, 2, 4], help="multiples of the capacity")
    options.add_argument("--seconds", type=float, default=60, help="in which requests arrive, per multiple")
    options.add_argument("--rows", type=int, default=8, help="replies that decode together")
    options.add_argument("--waiting", type=int, default=16, help="replies that may wait")
    options.add_argument("--tokens", type=int, default=128, help="tokens of a reply")
    options.add_argument("--context", type=int, default=256, help="tokens of a prompt")
    options.add_argument("--each", type=int, default=3, help="replies per row that measure the capacity")
    options.add_argument("--first", type=float, default=10.0, help="seconds until the first token of a good reply")
    options.add_argument("--slack", type=float, default=1.0, help="objective over the time per token at capacity")
    options.add_argument("--floor", default="keep=0.5", help="budget below which the governor does not go")
    asked = options.parse_args()
    results = measured(asked)
    capacity, objective = results["capacity_per_second"], results["objective_ms"]
    lines = [f"capacity {capacity:.2f} replies/s, objective {objective:.1f} ms per token"]
    lines += [
        f"{name:12} {factor}x: {run['goodput_per_second']:.2f} good of {run['served_per_second']:.2f} replies/s, "
        f"{run['refused']} of {run['offered']} refused, first {run['first_p95_s']:.1f} s, "
        f"per token {run['tpot_p95_ms']:.1f} ms (95 %), net keep {run['net_keep']:.2f}"
        for name, runs in results["arms"].items()
        for factor, run in runs.items()
    ]
    finish("shedding", asked, results, lines)


if __name__ == "__main__":
    main()
