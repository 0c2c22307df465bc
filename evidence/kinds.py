"""One table for every kind of result: what a generated page shows of a file."""

import statistics
from collections.abc import Callable
from typing import Any

from results import NONE, interval, markdown, median, number

Result = dict[str, Any]
_SETTINGS = ("dense, every logit", "dense", "mlp 0.6", "pages 0.2, mlp 0.6")
"""Of solm's steps, shown beside other engines."""
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
    command = result["command"].replace("|", "\\|")
    return f"`{command}`", where["commit"][:12], where["created"][:10], f"{machine.get('processor', NONE)}{cores}"


def made_by(result: Result) -> str:
    """Model, machine, date and commit of a result, as a paragraph."""
    _, commit, date, processor = origin(result)
    return f"{result['settings'].get('model', NONE)}, {processor}, {date}, commit {commit}."


@kind(
    "engine",
    "Decode steps and prompts",
    "Milliseconds of a decode step, medians of rounds in which the engines took turns. Compare within a row. "
    "*every logit*: the whole output head is computed, as other engines do.",
)
def engine(result: Result) -> str:
    if "contexts" not in result["results"]:
        return _points(result["results"]["points"])
    found = result["results"]
    columns = {f"solm, {name}": _steps(found, name) for name in _SETTINGS}
    columns |= {f"{name} ({peer['weights']})": _steps(peer, "dense") for name, peer in found["peers"].items()}
    places = sorted(
        {place for column in columns.values() for place in column}, key=lambda place: tuple(map(int, place))
    )
    rows = [
        [
            f"step after {int(context):,}, {count} rows",
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
        for start in ("first", "second"):
            cells = [median(each.get(name, {}).get(start), digits) for each in engines]
            if cells[0] != NONE:
                rows.append([f"{words}, {start} start", cells[0], *blank, *cells[1:]])
    return markdown(("", *columns), rows)


def _steps(engine: Result, setting: str) -> dict[tuple[str, str], Any]:
    """Milliseconds of an engine's steps under a setting, by context and rows."""
    contexts = engine["contexts"].items()
    return {(context, rows): ms for context, at in contexts for rows, ms in at["step_ms"].get(setting, {}).items()}


def _points(points: list[Result]) -> str:
    """Steps of an older form of the file: one object a point."""
    contexts = sorted({point["context"] for point in points})
    by_name: dict[str, dict[int, Any]] = {}
    for point in points:
        if point["rows"] == 1:
            name = ", ".join(
                str(point[key]) for key in ("engine", "precision", "kv_cache", "setting") if point.get(key)
            )
            by_name.setdefault(name, {})[point["context"]] = point["milliseconds"]
    rows = [[name, *(median(at.get(context)) for context in contexts)] for name, at in by_name.items()]
    return markdown(("engine", *(f"after {context:,}, ms" for context in contexts)), rows)


@kind(
    "variants", "Instruction sets", "The engine compiled for each, beside llama.cpp compiled for the same where it was."
)
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
    "budgets",
    "Budgets on the clock",
    "Steps in turn. *share*: milliseconds over those of the dense step in the same round.",
)
def budgets(result: Result) -> str:
    rows = [
        [name, median(arm["ms"]), number(1 / arm["ratio"]), number(arm.get("asked")), number(arm.get("realised"))]
        for name, arm in result["results"]["arms"].items()
    ]
    return markdown(("arm", "ms", "share on the clock", "requested", "realised by step times"), rows)


@kind(
    "clock",
    "Budgets and a stopwatch",
    "Replies under budgets in time and dense ones in turn, medians over rounds. *took*: milliseconds per token over "
    "those of the dense replies beside it. *told*: what the reply said that it realised. *busy*: beside one process "
    "that computes all the time.",
)
def clock(result: Result) -> str:
    rows, all_missed = [], []
    for machine, found in result["results"]["machines"].items():
        for context, arms in found["contexts"].items():
            for budget, arm in arms.items():
                shares = (statistics.median(arm[name]) if name in arm else None for name in ("asked", "told", "share"))
                rows.append([machine, f"{int(context):,}", budget, *map(number, shares), arm.get("reason", "")])
        if found["missed"]:
            off = (number(found["missed"][f"{name}_{part}"]) for name in ("asked", "told") for part in ("median", "95"))
            all_missed.append([machine, f"{found['missed']['replies']}", *off])
    head = ("machine", "after tokens", "budget", "requested", "told", "took", "not reached because")
    missed = ("machine", "replies", "miss of the request, median", "95 %", "miss of what was told, median", "95 %")
    return f"{markdown(missed, all_missed)}\n\n{markdown(head, rows, words=3)}"


@kind(
    "guess",
    "Guess and verify",
    "Dense greedy replies with and without guesses, in turns. *gain*: milliseconds per token without over those with, "
    "geometric mean over prompts with a 95 % interval. *best constant*: the gain of the constant number of guesses of "
    "one source that is best for the work. *same*: prompts whose replies have the same tokens.",
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
    known = [
        [f"{int(context):,}", *(median(ms, 1) for ms in found.values())]
        for context, found in result["results"]["passes"].items()
    ]
    counts = next(iter(result["results"]["passes"].values()))
    passes = markdown(("after tokens", *(f"{count} known, ms" for count in counts)), known, words=0)
    return f"{markdown(head, rows)}\n\n{passes}"


@kind("batch", "Several rows", "Rows that decode together under constant settings. Loss: nats per token above dense.")
def batch(result: Result) -> str:
    rows = []
    for p in result["results"]["points"]:
        cells = (median(p["milliseconds"]), number(p["ratio"], 2), interval(p["loss"]))
        rows.append([f"{p['context']:,}", str(p["rows"]), p["setting"], *cells])
    return markdown(("after tokens", "rows", "setting", "ms", "times as fast as dense", "loss"), rows, words=3)


@kind("settings", "What constant settings lose", "Nats per token above dense, with 95 % intervals over texts.")
def settings(result: Result) -> str:
    return markdown(
        ("setting", "loss"), [[name, interval(loss)] for name, loss in result["results"]["settings"].items()]
    )


@kind("thresholds", "Thresholds beside exact numbers of channels", "Steps at equal average shares, in turn.")
def thresholds(result: Result) -> str:
    arms = result["results"]["arms"].items()
    return markdown(
        ("arm", "ms", "share realised"), [[name, number(arm["ms"], 2), number(arm["share"])] for name, arm in arms]
    )


@kind("fits", "What a fit takes", "Seconds by phase, and peak memory with the model.")
def fits(result: Result) -> str:
    found = result["results"]["fits"]
    phases = list(dict.fromkeys(phase for fit in found for phase in fit["seconds"]))
    rows = [
        [
            number(fit["minutes"], 0),
            *(number(fit["seconds"].get(phase), 0) for phase in phases),
            number(fit["peak_gib"], 2),
        ]
        for fit in found
    ]
    return markdown(("minutes", *phases, "GiB"), rows, words=0)


@kind(
    "evaluation",
    "Loss at equal time or net keep",
    "Nats per token above the dense model, and the policy minus each other arm at the same budget: below 0 the policy "
    "loses less. Paired 95 % intervals over texts.",
)
def evaluation(result: Result) -> str:
    points = result["points"]
    compared = ("uniform", "constant", "allocated", "teal", "upper-bits", "random", "oracle")
    arms = [arm for arm in dict.fromkeys(p["arm"] for p in points) if arm in compared]
    at = {(p["arm"], p["budget"]): p for p in points}
    rows = []
    for policy in (p for p in points if p["arm"] == "policy"):
        budget = policy["budget"]
        others = [at.get((arm, budget), {}) for arm in arms]
        cells = [interval(at.get(("dense", budget), {}).get("difference")), number(policy.get("divergence"))]
        cells += [interval(other.get("difference")) for other in others]
        rows.append([number(budget), number(policy.get("step_ms"), 2), *cells])
    head = ("budget", "ms", "loss", "divergence from dense")
    return markdown((*head, *(f"policy − {arm}" for arm in arms)), rows, words=0)


@kind(
    "long-context", "Long contexts", "Attention under constant shares of pages and under the policy, by tokens before."
)
def long_context(result: Result) -> str:
    rows = [
        [
            f"{int(context):,}",
            arm,
            number(found["share"]),
            interval(found["minus_dense"]),
            number(found.get("milliseconds"), 1),
        ]
        for context, arms in result["results"].get("text", {}).items()
        for arm, found in arms.items()
    ]
    return markdown(("after tokens", "arm", "pages read", "loss", "ms"), rows, words=2)


@kind(
    "kv-drift",
    "Errors that stay in the cache",
    "Nats per token during a burst of cheap steps, and dense ones after it.",
)
def kv_drift(result: Result) -> str:
    found = result["results"]
    stretches = range(len(next(iter(found["after"].values()))))
    rows = [[axis, interval(found["during"][axis]), *map(interval, found["after"][axis])] for axis in found["during"]]
    return markdown(("axis", "during", *(f"stretch {number + 1} after" for number in stretches)), rows)


@kind(
    "fidelity", "What rounding costs", "The cpu backend's log-probabilities minus those of the same weights in float32."
)
def fidelity(result: Result) -> str:
    rows = [
        [
            name,
            number(gap["mean_difference"], 5),
            number(gap["standard_error"], 5),
            number(gap["mean_absolute_difference"]),
        ]
        for name, gap in result["results"]["precisions"].items()
    ]
    return markdown(("precision", "mean, nats", "standard error", "mean absolute difference"), rows)


@kind("tasks", "Multiple choice", "Accuracy by arm; differences are the policy minus the arm, over the same questions.")
def tasks(result: Result) -> str:
    rows = []
    for p in result["points"]:
        metric = "acc_norm" if "acc_norm" in p["scores"] else "acc" if "acc" in p["scores"] else next(iter(p["scores"]))
        cells = (
            number(p["budget"]),
            f"{p['questions']:,}",
            number(p["scores"][metric]),
            interval(p["differences"].get(metric)),
        )
        rows.append([p["task"], p["arm"], *cells])
    return markdown(("task", "arm", "budget", "questions", "score", "policy − arm"), rows, words=2)


@kind(
    "graded", "Graded replies", "Problems solved in free replies. Difference: the policy minus the arm, over problems."
)
def graded(result: Result) -> str:
    rows = [
        [
            name, p["arm"], number(p["budget"]), str(found["problems"]), number(p["solved"]),
            interval(p.get("policy_minus", {}).get("solved")), number(p["tokens"], 0),
        ]
        for name, found in result["results"]["kinds"].items()
        for p in found["points"]
        if "solved" in p
    ]  # fmt: skip
    return markdown(("problems", "arm", "budget", "number", "solved", "policy − arm", "tokens"), rows, words=2)


@kind("free-running", "Text that the model writes", "Score and KL of replies by the dense model, nats per token.")
def free_running(result: Result) -> str:
    rows = [
        [number(point["budget"]), arm, number(found["score"]), number(found["kl"]), number(found.get("ms"), 2)]
        for point in result["results"]["points"]
        for arm, found in point["arms"].items()
    ]
    return markdown(("budget", "arm", "score", "KL", "ms"), rows, words=2)


_OF_A_SERVER = (
    ("tokens/s", "tokens_per_second"), ("first token p50, ms", "first_p50_ms"), ("p95", "first_p95_ms"),
    ("per token p50, ms", "tpot_p50_ms"), ("p95", "tpot_p95_ms"),
)  # fmt: skip


@kind("serve", "Servers", "Clients that wait for each reply before the next request.")
def serve(result: Result) -> str:
    rows = [
        [name, clients, *(number(found.get(key), 1) for _, key in _OF_A_SERVER)]
        for name, by_clients in result["results"]["servers"].items()
        for clients, found in by_clients.items()
        if isinstance(found, dict)
    ]
    return markdown(("server", "clients", *(words for words, _ in _OF_A_SERVER)), rows)


@kind("shedding", "More load than capacity", "Requests offered at multiples of what the server completes when full.")
def shedding(result: Result) -> str:
    columns = ("offered", "served", "refused", "cut_off", "goodput_per_second", "tpot_p95_ms", "net_keep")
    rows = [
        [arm, factor, *(number(found[column], 0 if column in columns[:4] else 2) for column in columns)]
        for arm, by_factor in result["results"]["arms"].items()
        for factor, found in by_factor.items()
    ]
    return markdown(("arm", "times capacity", *(column.replace("_", " ") for column in columns)), rows)


@kind("governor", "Budgets under load", "The governor holds a time per token by lowering budgets.")
def governor(result: Result) -> str:
    rows = [
        [name, *(number(found.get(key), 1) for _, key in _OF_A_SERVER), number(found.get("net_keep"))]
        for name, found in result["results"]["servers"].items()
    ]
    return markdown(("server", *(words for words, _ in _OF_A_SERVER), "net keep"), rows)
