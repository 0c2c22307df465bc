"""The tables of servers: beside others, replicas, a governor that halves weights, a row under a grammar."""

from typing import Any

import published as of
from cells import markdown, table

BESIDE = {"serve-0.5b": "128", "serve-0.5b-1024": "1,024"}
"""By result the tokens of its prompts. Shown are those that have been measured."""


@table
def serving_beside() -> str:
    """The cpu backend's server beside others on the same model."""
    found = {prompt: (name, of.read(name)) for name, prompt in BESIDE.items() if of.measured(name)}
    if not found:
        return ""
    rows = [
        [server, prompt, clients, *_rates(run), f"{one['peak_gib'][server]:.2f}"]
        for prompt, (_, one) in found.items()
        for clients in next(iter(one["servers"].values()))
        for server, runs in one["servers"].items()
        for run in (runs[clients],)
    ]
    head = ("Server", "prompt, tokens", "clients", *_RATES, "peak memory, GiB")
    return markdown(head, rows) + f"\n{_cited(*(name for name, _ in found.values()))}\n"


@table
def replicas() -> str:
    """Two processes of one thread beside one of two."""
    if not of.measured("replicas-135m"):
        return ""
    found = of.read("replicas-135m")
    rows = [
        [server, clients, *_rates(run), f"{found['peak_gib'][server]:.2f}"]
        for clients in next(iter(found["servers"].values()))
        for server, runs in found["servers"].items()
        for run in (runs[clients],)
    ]
    return markdown(("SmolLM2-135M", "clients", *_RATES, "peak memory, GiB"), rows) + f"\n{_cited('replicas-135m')}\n"


@table
def governor_bits() -> str:
    """The governor where the floor halves the bits of weights that a step reads."""
    if not of.measured("governor-0.5b"):
        return ""
    found = of.read("governor-0.5b")
    rows = [[name, *_rates(run), f"{run['net_keep']:.2f}"] for name, run in found["servers"].items()]
    head = (f"Objective: {found['objective_ms']:.1f} ms", *_RATES, "net keep")
    return markdown(head, rows) + f"\n{_cited('governor-0.5b')}\n"


@table
def constrained_batch() -> str:
    """What one row under a grammar adds to a step of its batch."""
    found = of.constrained_batch()
    if found is None:
        return ""
    rows = [
        [f"{point['rows']}", f"{point['approximate']['median']:.1f}", f"{point['one_constrained']['median']:.1f}",
         f"{point['exact']['median']:.1f}"]
        for point in found["points"]
    ]  # fmt: skip
    head = ("all greedy, ms", "one row under a grammar, ms", "all logits of all rows, ms")
    added = [point["one_constrained"]["median"] - point["approximate"]["median"] for point in found["points"]]
    told = f"One row under a grammar adds {min(added):.1f} to {max(added):.1f} ms to a step, its mask included.\n\n"
    return told + markdown(("Rows", *head), rows) + f"\n{_cited('constrained-0.5b')}\n"


_RATES = ("tokens/s", "first token, ms: median", "95 %", "ms per token: median", "95 %")


def _rates(run: dict[str, Any]) -> list[str]:
    first = (f"{run[f'first_{which}_ms']:,.0f}" for which in ("p50", "p95"))
    return [f"{run['tokens_per_second']:.0f}", *first, *(f"{run[f'tpot_{which}_ms']:.1f}" for which in ("p50", "p95"))]


def _cited(*names: str) -> str:
    return " ".join(f"`results/{name}.json`." for name in names)
