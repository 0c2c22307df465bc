"""The tables of servers: beside others, a governor that halves weights, a row under a grammar."""

from typing import Any

import published as of
from cells import NONE, interval, markdown, table

BESIDE = ("serve-0.5b", "serve-0.5b-replies-256", "serve-0.5b-1024", "serve-0.5b-shared-4096")
OTHER_FILES = {"Q4_K_M": "serve-0.5b", "Q4_0": "serve-0.5b-q4_0", "Q8_0": "serve-0.5b-q8_0"}
"""By type of file the result. Shown are those that have been measured."""
LLAMA = "llama.cpp, xllamacpp"


@table
def serving_beside() -> str:
    """The cpu backend's server beside others on the 0.5B."""
    return _beside(BESIDE)


@table
def serving_small() -> str:
    """The same on the 135M."""
    return _beside(("serve-135m", "serve-135m-1024"))


def _beside(results: tuple[str, ...]) -> str:
    """Those of the results that have been measured."""
    names, rows = [name for name in results if of.measured(name)], []
    for name in names:
        found, settings = of.read(name), of.settings(name)
        known = f"{settings['shared']:,} known + " if settings.get("shared") else ""
        tokens = f"{known}{settings['prompt']:,} + {settings['tokens']}"
        for clients in next(iter(found["servers"].values())):
            rows += [
                [_shown(server), tokens, clients, *_rates(runs[clients]),
                 f"{found['peak_gib'][server]:.2f}" if server in found["peak_gib"] else "as above"]
                for server, runs in _together(found["servers"]).items()
            ]  # fmt: skip
    head = ("Server", "prompt + reply, tokens", "clients", *_RATES, "peak memory, GiB")
    return markdown(head, rows, 2) + f"\n{_cited(*names)}\n" if names else ""


@table
def serving_files() -> str:
    """llama.cpp's server and ours on files of other types."""
    names = {kind: name for kind, name in OTHER_FILES.items() if of.measured(name)}
    rows = []
    for kind, name in names.items():
        theirs, ours = (of.read(name)["servers"][server] for server in (LLAMA, "solm"))
        rows += [
            [kind, clients, *(f"{theirs[clients][what]:{form}} → {ours[clients][what]:{form}}" for what, form in _BOTH)]
            for clients in ours
        ]
    head = ("File", "clients", "tokens/s", "first token, ms", "ms per token")
    return markdown(head, rows) + f"\n{_cited(*names.values())}\n" if names else ""


_BOTH = (("tokens_per_second", ".0f"), ("first_p50_ms", ",.0f"), ("tpot_p50_ms", ".1f"))


def _together(servers: dict[str, Any]) -> dict[str, Any]:
    """Our server under a budget behind itself."""
    return dict(sorted(servers.items(), key=lambda item: not item[0].startswith("solm")))


def _shown(server: str) -> str:
    name, _, budget = server.partition(" at ")
    return f"{name}, budget `{budget}`" if budget else f"{name}, dense" if name == "solm" else name


GOVERNORS = {
    "governor, budgets": "governor: lower budgets", "governor, rows": "governor: prompts wait",
    "governor, budgets and rows": "governor: lower budgets, prompts wait",
}  # fmt: skip
"""Ways to govern, as pages call them."""


@table
def governor() -> str:
    objective, found = of.governed()
    rows = [
        [GOVERNORS.get(name, name), f"{r['tpot_p50_ms']:.1f}", f"{r['tpot_p95_ms']:.1f}",
         f"{r['tokens_per_second']:.0f}", f"{r['first_p50_ms'] / 1000:.1f}", f"{r['net_keep']:.2f}"]
        for name, r in found.items()
    ]  # fmt: skip
    head = ("tokens/s", "first token, s", "net keep")
    return markdown((f"Objective: {objective:.1f} ms", "ms per token, median", "95th percentile", *head), rows)


@table
def governor_pages() -> str:
    """The governor where the floor is a share of the pages of long contexts."""
    return _governed("governor-0.5b-4096")


@table
def governor_bits() -> str:
    """The governor where the floor halves the bits of weights that a step reads."""
    return _governed("governor-0.5b")


def _governed(name: str) -> str:
    if not of.measured(name):
        return ""
    found = of.read(name)
    rows = [
        [GOVERNORS.get(how, how), *_rates(run), f"{run['net_keep']:.2f}", _less_likely(run.get("less_likely"))]
        for how, run in found["servers"].items()
    ]
    head = (f"Objective: {found['objective_ms']:.1f} ms", *_RATES, "net keep",
            "loss above the dense server's, nats per token")  # fmt: skip
    return markdown(head, rows) + f"\n{_cited(name)}\n"


def _less_likely(found: dict[str, float] | None) -> str:
    """A dash for the dense server, whose replies others are compared with."""
    return NONE if found is None else interval(of.Difference.of(found))


@table
def batch() -> str:
    """What budgets save and lose where rows are decoded together."""
    found = {(p["context"], p["rows"], p["setting"]): p for p in of.read("batch-0.5b")["points"]}
    counts, most = sorted({rows for _, rows, _ in found}), max(rows for _, rows, _ in found)
    rows = []
    for context, setting in dict.fromkeys((context, setting) for context, _, setting in found):
        points = [found[context, count, setting] for count in counts]
        times = [f"{p['milliseconds']['median']:.1f} ({p['ratio']:.2f}×)" for p in points]
        loss = "0" if setting == "dense" else interval(of.Difference.of(found[context, most, setting]["loss"]))
        rows.append([f"{context:,}", setting, *times, loss])
    timed = (f"{count} row{'s' if count > 1 else ''}, ms" for count in counts)
    return (
        markdown(("After tokens", "Setting", *timed, "loss, nats per token"), rows, 2) + f"\n{_cited('batch-0.5b')}\n"
    )


NEIGHBOURS = {"SmolLM2-135M": "neighbours", "Qwen2.5-Coder-0.5B": "neighbours-0.5b"}


@table
def neighbours() -> str:
    """What engines keep of their tokens per second beside processes that keep cores busy."""
    rows = [
        [model, engine, *(f"{found[busy]['kept']:.2f}" for busy in ("1", "2"))]
        for model, name in NEIGHBOURS.items()
        for engine, found in of.read(name).items()
    ]
    head = ("Model", "Engine", "one busy process", "two")
    return markdown(head, rows, 2) + f"\n{_cited(*NEIGHBOURS.values())}\n"


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


_RATES = ("tokens/s", "first token, ms: median", "p95", "ms per token: median", "p95")


def _rates(run: dict[str, Any]) -> list[str]:
    first = (f"{run[f'first_{which}_ms']:,.0f}" for which in ("p50", "p95"))
    return [f"{run['tokens_per_second']:.0f}", *first, *(f"{run[f'tpot_{which}_ms']:.1f}" for which in ("p50", "p95"))]


def _cited(*names: str) -> str:
    """Files by the processor that they were measured on."""
    made: dict[str, list[str]] = {}
    for name in names:
        made.setdefault(of.processor(name), []).append(f"`results/{name}.json`")
    return " ".join(f"{', '.join(files)}: {processor}." for processor, files in made.items())


@table
def grammar_libraries() -> str:
    """What libraries of grammars cost, over five schemas."""

    def spread(values: list[float]) -> str:
        least, most = round(min(values)), round(max(values))
        return f"{least}" if least == most else f"{least} to {most}"

    rows = []
    for name, library in (("grammars", "llguidance"), ("grammars-xgrammar", "xgrammar")):
        cases = of.read(name)[library]["cases"].values()
        each = [[case[what] for case in cases] for what in ("compile_ms", "step_ms", "longest_ms")]
        rows.append([library, spread(each[0]), spread(each[1]), f"{max(each[2]):.0f}"])
    return markdown(("Library", "compiling a schema, ms", "added to a step, ms", "longest step, ms"), rows)
