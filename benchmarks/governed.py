"""A server's governor under twice the load that a dense server holds its objective for: speed, and quality of what it
wrote.

    python benchmarks/governed.py --model FILE.gguf --precision auto --shared 4096 --context 64 --floor attention=0.2

The objective is what a dense server's 95th percentile of the time per output token (a reply's time after its first
token over the number of tokens after it) is at `--hold` clients; then twice as many come. Tokens per second are counted
while all clients ask.
"""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import solm
from clients import DENSE, WHOLE, Answers, Load, line, some_texts
from common import MODEL, finish, parser
from server_process import free_port, on_cpu, server
from solm.evaluation.likelihoods import likelihoods
from solm.evaluation.statistics import paired_difference
from solm.policies.schedules import Static

CALM, OVERLOAD = "dense, no overload", "dense, overload"


def governed(options: Any) -> dict[str, Any]:
    """Every kind of governor in turn."""
    command, rows = on_cpu(options, "--precision", options.precision), options.hold
    each = options.replies
    warm_up, calm = 2 * rows, rows * each
    texts = some_texts(options.model, warm_up + calm + 2 * rows * each, options.context, shared=options.shared)
    found: dict[str, Answers] = {}

    def overloaded(address: str, more: dict[str, Any]) -> Answers:
        """Answers to the texts that are the same for all servers, after a warm-up with as many clients."""
        load = Load(address, "served", more | WHOLE, options.tokens)
        asyncio.run(load.run(2 * rows, 1, texts[:warm_up]))
        return asyncio.run(load.run(2 * rows, each, texts[warm_up + calm :]))

    with tempfile.TemporaryDirectory() as folder:
        with server(command, free_port(), Path(folder) / "dense.log") as dense:
            found[OVERLOAD] = overloaded(dense.address, DENSE)
            load = Load(dense.address, "served", DENSE | WHOLE, options.tokens)
            found[CALM] = asyncio.run(load.run(rows, each, texts[warm_up:]))
        objective = found[CALM].numbers()["tpot_p95_ms"]
        slo = ["--slo-tpot-ms", f"{objective:.3f}"]
        kinds = {
            "governor, budgets": ["--slo-floor", options.floor, "--no-slo-rows"],
            "governor, budgets and rows": ["--slo-floor", options.floor],
            "governor, rows": ["--slo-floor", "1"],
        }
        by = {"efficiency": {"budget": 1.0, "policy": "policy" if options.model == MODEL else "static"}}
        for name, more in kinds.items():
            with server([*command, *slo, *more], free_port(), Path(folder) / "governed.log") as one:
                found[name] = overloaded(one.address, by)
    numbers: dict[str, dict[str, Any]] = {
        name: answers.numbers() | {"tokens_per_second": answers.busy_rate()} for name, answers in found.items()
    }
    less = less_likely(options, {name: answers for name, answers in found.items() if name != CALM})
    for name, loss in less.items():
        numbers[name]["less_likely"] = loss
    order = (CALM, OVERLOAD, *kinds)
    return {
        "objective_ms": objective, "clients": {"calm": rows, "overload": rows * 2},
        "servers": {name: numbers[name] for name in order},
    }  # fmt: skip


def less_likely(options: Any, found: dict[str, Answers]) -> dict[str, dict[str, float]]:
    """By how many nats per token the dense model finds the replies of a server less likely than those that the dense
    server wrote to the same prompts: mean with its 95 % interval over prompts."""
    with solm.load(options.model, backend="cpu", precision=options.precision) as lm:
        assert lm.tokenizer is not None
        pairs, owners = [], []
        for name, answers in found.items():
            for reply in answers.replies:
                prompt = lm.encode([{"role": "user", "content": reply.prompt}])[0].tolist()
                pairs.append((prompt, lm.tokenizer.encode(reply.text, add_special_tokens=False)))
                owners.append((name, reply.prompt))
        scored = likelihoods(lm, pairs, Static(lm.space), torch.ones(3, dtype=torch.float64), batch=4)
    each: dict[str, dict[str, float]] = {}
    for (name, prompt), (_, text), score in zip(owners, pairs, scored.log_probabilities, strict=True):
        each.setdefault(name, {})[prompt] = score / len(text)
    dense = each.pop(OVERLOAD)
    differences = {}
    for name, scores in each.items():
        whole, its = (np.array([one[prompt] for prompt in sorted(dense)]) for one in (dense, scores))
        differences[name] = {**paired_difference(whole, its)._asdict(), "texts": len(whole)}
    return differences


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = parser(__doc__)
    options.add_argument("--hold", type=int, default=4, help="clients without overload")
    options.add_argument("--replies", type=int, default=6, help="of every client")
    options.add_argument("--tokens", type=int, default=256, help="tokens of a reply")
    options.add_argument("--context", type=int, default=256, help="tokens of a prompt, without the chat template's")
    options.add_argument("--shared", type=int, default=0, help="tokens more that all prompts begin with")
    options.add_argument("--floor", default="keep=0.5", help="budget below which the governor does not go")
    options.add_argument("--precision", default="int8", help="of the server and of the model that judges replies")
    options.add_argument("--serve", default="", help="more options of solm serve, as one text")
    asked = options.parse_args()
    results = governed(asked)
    finish("governor", asked, results, [line(name, run) for name, run in results["servers"].items()])


if __name__ == "__main__":
    main()
