"""One table for every kind of result: what a generated page shows of a file."""

import statistics
from collections.abc import Callable
from typing import Any

from results import NONE, interval, markdown, median, number

Result = dict[str, Any]
_SETTINGS = ("dense, every logit", "dense", "mlp 0.6", "pages 0.2, mlp 0.6")
"""Of solm's steps, shown beside other engines."""
_GENERATIONS = {"family 26, model 2": "Zen 5", "family 25, model 17": "Zen 4"}
"""What processors are called whose family and model a result has."""
_SHOWN = 4
"""Stretches after a burst that are shown."""
KINDS: dict[str, tuple[str, str, Callable[[Result], str]]] = {}
"""By kind of a result: heading, how to read the table, and the table."""


def kind(name: str, heading: str, explained: str) -> Callable[[Callable[[Result], str]], Callable[[Result], str]]:
    """Makes a function the table of a kind."""

    def register(table: Callable[[Result], str]) -> Callable[[Result], str]:
        KINDS[name] = heading, explained, table
        return table

    return register


def origin(result: Result) -> tuple[str, str, str, str]:
    """Command, commit, date and processor of a result, as cells."""
    where = result["environment"]
    machine = where.get("machine", {})
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    command, processor = result["command"].replace("|", "\\|"), machine.get("processor", NONE)
    for family, generation in _GENERATIONS.items():
        processor = processor.replace(family, generation)
    return f"`{command}`", where["commit"][:12], where["created"][:10], f"{processor}{cores}"


def made_by(result: Result) -> str:
    """Model, machine, date and commit of a result, as a paragraph."""
    _, commit, date, processor = origin(result)
    return f"{result['settings'].get('model', NONE)}, {processor}, {date}, commit {commit}."


@kind(
    "engine",
    "Decode steps and prompts",
    "Milliseconds of a decode step, the median of rounds in which the engines took turns. Compare within a row: the "
    "host is shared. Other engines compute every logit; solm's greedy steps only those that may be the largest. "
    "*fused*: with llama.cpp's fused attention. "
    "*pages 0.2*: a fifth of the KV pages is read. *mlp 0.6*: 0.6 of the MLP's inputs and 0.36 of its hidden channels.",
)
def engine(result: Result) -> str:
    found = result["results"]
    columns = {f"solm, {name}": _steps(found, name) for name in _SETTINGS}
    columns |= {
        f"{name.partition(',')[0]} ({peer['weights']})": _steps(peer, "dense") for name, peer in found["peers"].items()
    }
    places = sorted(
        {place for column in columns.values() for place in column}, key=lambda place: tuple(map(int, place))
    )
    rows = [
        [
            f"step after {int(context):,}" + (f", {count} rows" if count != "1" else ""),
            *(median(column.get((context, count))) for column in columns.values()),
        ]
        for context, count in places
    ]
    engines = [found, *found["peers"].values()]
    blank = [NONE] * (len(columns) - len(engines))
    for context in found["contexts"]:
        read = [each["contexts"].get(context, {}).get("prefill_tokens_per_second") for each in engines]
        cells = [median(speed, 0) for speed in read]
        rows.append([f"prompt of {int(context):,}, tokens/s", cells[0], *blank, *cells[1:]])
    for words, name, digits in (("peak memory, GiB", "peak_gib", 2), ("start to first token, s", "start_seconds", 1)):
        for start, which in (("first", "first start"), ("second", "later starts")):
            cells = [median(each.get(name, {}).get(start), digits) for each in engines]
            if cells[0] != NONE:
                rows.append([f"{words}, {which}", cells[0], *blank, *cells[1:]])
    return markdown(("", *columns), rows)


def _steps(engine: Result, setting: str) -> dict[tuple[str, str], Any]:
    """Milliseconds of an engine's steps under a setting, by context and rows."""
    contexts = engine["contexts"].items()
    return {(context, rows): ms for context, at in contexts for rows, ms in at["step_ms"].get(setting, {}).items()}


@kind("variants", "Instruction sets", "solm's engine and llama.cpp, each compiled for the set.")
def variants(result: Result) -> str:
    rows = []
    for name, found in result["results"]["variants"].items():
        for engine_name, measured in ((f"solm, {name}", found), (f"llama.cpp, {name}", found.get("llama.cpp"))):
            for context, at in (measured or {"contexts": {}})["contexts"].items():
                steps = at["step_ms"].get("dense") or at["step_ms"].get("dense, every logit") or {}
                cells = (median(steps.get(count)) for count in ("1", "16"))
                rows.append([engine_name, f"{int(context):,}", median(at.get("prefill_tokens_per_second"), 0), *cells])
    return markdown(("engine", "after tokens", "prompt, tokens/s", "1 row, ms", "16 rows, ms"), rows)


@kind(
    "clock",
    "Budgets by a stopwatch",
    "Replies under budgets in time and dense ones in turn; a share is milliseconds per token over those of the dense "
    "replies beside it, its median over rounds. *missed by*: the share less what was asked for, or less what the reply "
    "reported. *busy*: beside a process that keeps a core busy.",
)
def clock(result: Result) -> str:
    missed, took = [], dict[str, list[str]]()
    places = []
    for machine, found in result["results"]["machines"].items():
        for context, arms in found["contexts"].items():
            places.append(f"{machine}, after {int(context):,}")
            for budget, arm in arms.items():
                row = took.setdefault(
                    budget, [budget, number(statistics.median(arm["asked"]) if "asked" in arm else None)]
                )
                row.append(number(statistics.median(arm["share"])) if "share" in arm else "refused")
        if off := found["missed"]:
            of = (number(off[f"{name}_{part}"]) for name in ("asked", "told") for part in ("median", "95"))
            missed.append([machine, f"{off['replies']}", *of])
    head = ("machine", "replies", "request missed by, median", "95 %", "report missed by, median", "95 %")
    return f"{markdown(head, missed)}\n\n{markdown(('budget', 'share asked for', *places), list(took.values()))}"


@kind(
    "guess",
    "Guess and verify",
    "Dense greedy replies with and without guesses, in turns. *gain*: how many times as fast with guesses, geometric "
    "mean over prompts with a 95 % interval. *best constant*: the gain where every pass has the same number of guesses "
    "of one source, the best for this work. *same*: prompts that all ways answer with the same tokens. Below, "
    "the milliseconds of one pass that processes so many tokens of a row.",
)
def guess(result: Result) -> str:
    rows, best = [], list[str]()
    for name, work in result["results"]["works"].items():
        share = work["accepted"] / work["guessed"] if work["guessed"] else None
        times = (median(work["ms"][arm], 1) for arm in ("off", "auto"))
        gain = f"{work['gain']['value']:.2f} ({work['gain']['low']:.2f} to {work['gain']['high']:.2f})"
        same = f"{work['same']} of {work['prompts']}"
        best = [f"{work['best']}: {work['gains'][work['best']]['value']:.2f}"] if "best" in work else []
        rows.append([name, *times, gain, *best, f"{work['guessed']}", number(share, 2), same])
    constant = ["best constant"] if best else []
    head = ("work", "ms without", "ms with", "gain", *constant, "guessed", "accepted", "same")
    passes = result["results"]["passes"]
    counts = next(iter(passes.values()))
    known = [[count, *(median(found[count], 1) for found in passes.values())] for count in counts]
    after = (f"after {int(context):,}, ms" for context in passes)
    return f"{markdown(head, rows)}\n\n{markdown(('tokens of a pass', *after), known, words=0)}"


@kind(
    "batch",
    "What constant settings lose",
    "Nats per token above dense steps, with 95 % intervals over texts. Every step has the same setting, in all layers.",
)
def batch(result: Result) -> str:
    timed = "milliseconds" in result["results"]["points"][0]
    rows = []
    for p in result["results"]["points"]:
        times = [median(p["milliseconds"]), number(p["ratio"], 2)] if timed else []
        rows.append([f"{p['context']:,}", str(p["rows"]), p["setting"], interval(p["loss"]), *times])
    head = ("after tokens", "rows", "setting", "loss", *(("ms", "times as fast as dense") if timed else ()))
    return markdown(head, rows, words=3)


@kind(
    "evaluation",
    "Loss at equal time",
    "Budgets are shares of a dense step's time. *loss*: nats per token above the dense model, of the policy. The last "
    "columns: the policy's loss minus that of a baseline that takes as long; below 0 the policy loses less. "
    "Paired 95 % intervals over texts. Baselines: [arms](../reproduce.md#arms).",
)
def evaluation(result: Result) -> str:
    points = result["points"]
    arms = [arm for arm in dict.fromkeys(p["arm"] for p in points) if arm not in ("policy", "dense")]
    at = {(p["arm"], p["budget"]): p for p in points}
    policies = [p for p in points if p["arm"] == "policy"]
    diverging = policies[0].get("divergence") is not None
    rows = []
    for policy in policies:
        budget = policy["budget"]
        others = [at.get((arm, budget), {}).get("difference") for arm in ("dense", *arms)]
        cells = [number(policy.get("step_ms"), 2), *([number(policy["divergence"])] if diverging else [])]
        rows.append([number(budget), *cells, *map(interval, others)])
    head = ("budget", "ms", *(["divergence"] if diverging else []), "loss", *(f"policy − {arm}" for arm in arms))
    return markdown(head, rows, words=0)


@kind(
    "long-context",
    "Reading a share of a long context",
    "Loss, nats per token above dense steps with 95 % intervals over texts, by tokens before. *constant*: this share "
    "of the KV pages, by the policy's allocation to heads. *uniform*: the same share in every head. *policy*: it "
    "chooses for every token.",
)
def long_context(result: Result) -> str:
    found = result["results"]["text"]
    shown = dict.fromkeys(arm for arms in found.values() for arm in arms if arm != "constant 1" and " as " not in arm)
    rows = [[arm, *(interval(arms.get(arm, {}).get("minus_dense")) for arms in found.values())] for arm in shown]
    return markdown(("arm and share", *(f"after {int(context):,}" for context in found)), rows)


@kind(
    "kv-drift",
    "What cheap steps leave in the cache",
    "Loss, nats per token above dense steps, in a burst of cheap steps and in the stretches of dense steps that follow "
    "it and read the keys and values that it wrote. Each axis alone, and all three.",
)
def kv_drift(result: Result) -> str:
    found, settings = result["results"], result["settings"]
    head = (
        "cheap axis",
        f"{settings['burst']} cheap steps",
        *(f"dense stretch {place + 1}" for place in range(_SHOWN)),
    )
    rows = [
        [axis, interval(found["during"][axis]), *map(interval, found["after"][axis][:_SHOWN])]
        for axis in found["during"]
    ]
    return markdown(head, rows)


@kind(
    "kv-cache",
    "Keys and values in fewer bits",
    "*int8-int4*: keys in 8 bits, values in 4. Against a cache of 16 bits, dense steps, nats per token with 95 % "
    "intervals over texts. *loss*: of the scored tokens. *divergence*: KL of the predictions.",
)
def kv_cache(result: Result) -> str:
    found, settings = result["results"], result["settings"]
    rows = [
        [_cache(dtype), f"{told['bytes']:,.0f}"]
        + [interval(told[name]) if name in told else "" for name in ("loss", "divergence")]
        for dtype, told in found.items()
    ]
    about = "{texts} texts, {length:,} scored tokens each after {context:,}.".format(**settings)
    return about + "\n\n" + markdown(("cache", "bytes per token", "loss", "divergence"), rows)


@kind(
    "context-memory",
    "Memory of a long context",
    "One row of random tokens. *peak*: resident memory of the process, with the libraries of the benchmark. *pages*: "
    "of the KV cache. *arithmetic*: the model's file, and its keys and values in as many bits.",
)
def context_memory(result: Result) -> str:
    head = ("cache", "tokens", "before reading, GiB", "peak, GiB", "pages, GiB", "arithmetic, GiB", "peak / arithmetic")
    rows = []
    for dtype, told in result["results"].items():
        gib = [f"{told[name] / 2**30:.2f}" for name in ("before", "peak", "pages", "arithmetic")]
        tokens = f"{result['settings']['context']:,}"
        rows.append([_cache(dtype), tokens, *gib, f"{told['peak'] / told['arithmetic']:.2f}"])
    return markdown(head, rows)


def _cache(dtype: str) -> str:
    return "16 bits" if dtype == "auto" else dtype


@kind(
    "mixture",
    "Experts of a small mixture",
    "A small model that was trained for an hour: what is large here may be small in another. Loss, "
    "nats per token above dense steps with 95 % intervals over texts, of steps that read this share of the bytes. *by "
    "probability*: tokens visit experts until these hold enough of the router's probability; *by number*: always as "
    "many; *channels*: all experts, with fewer channels; *policy*: of `solm fit --experts`, which reads fewer pages, "
    "too: its own share of the bytes is beside it.",
)
def mixture(result: Result) -> str:
    found, about = result["results"], result["results"]["training"]
    kinds = {"probability": "by probability", "number": "by number", "channels": "channels", "policy": "policy"}
    rows = []
    for name, told in found["arms"].items():
        if name.startswith("probability"):
            place = name.removeprefix("probability")
            columns = (found["arms"].get(f"{kind}{place}", {}) for kind in kinds)
            losses = [interval(column.get("minus_dense")) for column in columns]
            if (policy := found["arms"].get(f"policy{place}")) is not None:
                losses[-1] += f" at {number(policy['bytes'])}"
            rows.append([number(told["bytes"]), number(told["mlp"], 2), *losses])
    trained = f"{about['weights'] / 1e6:.1f} million weights, {about['tokens'] / 1e6:.1f} million tokens in "
    trained += f"{about['minutes']:.0f} minutes; the loss of dense steps is {found['nats']:.2f} nats per token."
    return f"{trained}\n\n{markdown(('bytes', 'experts visited', *kinds.values()), rows, words=0)}"


@kind(
    "experts",
    "Steps of a large mixture of experts",
    "The sizes of Qwen3-30B-A3B with random weights and few layers: time, not quality. *read*: bytes of weights that "
    "the kernel had to map for a step with every logit; *computed*: what the sizes say. *experts 0.5*: a token visits "
    "half of its experts, and the logits are those of greedy steps; llama.cpp computes every logit. Milliseconds are "
    "medians of rounds in which the engines took turns.",
)
def experts(result: Result) -> str:
    found, settings = result["results"], result["settings"]
    rows = []
    for name, engine in found["engines"].items():
        for setting, by_rows in engine["step_ms"].items():
            share = setting.removeprefix("experts ")
            read = (found[key].get(share) if name == "solm" else None for key in ("read_bytes", "computed_bytes"))
            cells = [number(each and each / 1e9) for each in read]
            speed = number(engine["prefill_tokens_per_second"]["median"], 0)
            rows.append([f"{name}, {setting}", *cells, *map(median, by_rows.values()), speed])
    head = ("", "read, GB", "computed, GB", "1 row, ms", f"{settings['rows']} rows, ms", "prompt, tokens/s")
    about = f"{settings['layers']} layers, after {settings['context']} tokens; a file of "
    about += f"{found['file_bytes'] / (1 << 30):.1f} GiB, and {found['peak_gib']:.1f} GiB of memory at most."
    return f"{about}\n\n{markdown(head, rows)}"


@kind(
    "graded",
    "Problems solved",
    "Free replies to problems, graded. *policy − arm*: the share that the policy solves minus that of the arm at the "
    "same budget, with 95 % intervals over problems. *tokens*: mean length of a reply.",
)
def graded(result: Result) -> str:
    rows = []
    for found in result["results"]["kinds"].values():
        for p in (each for each in found["points"] if "solved" in each):
            difference = interval(p.get("policy_minus", {}).get("solved"))
            cells = (str(found["problems"]), number(p["solved"]), difference, number(p["tokens"], 0))
            rows.append([p["arm"], number(p["budget"]), *cells])
    return markdown(("arm", "budget", "problems", "solved", "policy − arm", "tokens"), rows)


@kind(
    "free-running",
    "Text that the model writes",
    "Texts sampled under a budget, judged by the dense model: *score* is its mean log-probability per token, *KL* the "
    "divergence of the arm's predictions from its own.",
)
def free_running(result: Result) -> str:
    rows = [
        [arm, number(point["budget"]), number(found["score"]), number(found["kl"]), number(found.get("ms"), 2)]
        for point in result["results"]["points"]
        for arm, found in point["arms"].items()
    ]
    return markdown(("arm", "budget", "score", "KL", "ms"), rows)


_OF_A_SERVER = (
    ("tokens/s", "tokens_per_second"), ("first token p50, ms", "first_p50_ms"), ("first token p95", "first_p95_ms"),
    ("per token p50, ms", "tpot_p50_ms"), ("per token p95", "tpot_p95_ms"),
)  # fmt: skip


@kind(
    "serve",
    "Servers under load",
    "So many clients at once, each of which waits for its reply before the next request. *tokens/s*: of all clients. "
    "Times to the first token and per token: medians (p50) and 95th percentiles of replies.",
)
def serve(result: Result) -> str:
    rows = [
        [name, clients, *(number(found.get(key), 1) for _, key in _OF_A_SERVER)]
        for name, by_clients in result["results"]["servers"].items()
        for clients, found in by_clients.items()
        if isinstance(found, dict)
    ]
    return markdown(("server", "clients", *(words for words, _ in _OF_A_SERVER)), rows)


@kind(
    "shedding",
    "More load than capacity",
    "Requests arrive at 1, 2 and 4 times the rate that the server can answer. *good*: replies per second that met the "
    "objectives of time to the first token and per token. The governor holds these by letting requests wait.",
)
def shedding(result: Result) -> str:
    columns = {
        "offered": ("requests", 0), "served": ("served", 0), "refused": ("refused", 0), "cut_off": ("cut off", 0),
        "goodput_per_second": ("good, 1/s", 2), "tpot_p95_ms": ("per token p95, ms", 2), "net_keep": ("net keep", 2),
    }  # fmt: skip
    rows = [
        [arm, factor, *(number(found[name], digits) for name, (_, digits) in columns.items())]
        for arm, by_factor in result["results"]["arms"].items()
        for factor, found in by_factor.items()
    ]
    return markdown(("server", "times capacity", *(words for words, _ in columns.values())), rows)
