"""The chapters about replies that are graded: how many problems each arm solves, and what its tokens cost."""

from typing import Any

import published as of
from cells import NONE, interval, markdown, rate, table
from published import Difference

MODELS = {"0.5b": "Qwen2.5-Coder-0.5B", "1.5b": "Qwen2.5-Coder-1.5B"}
"""By size of the result, the model that it is about. Shown are those that have been measured."""
NAMES = {"gsm8k": "GSM8K", "humaneval": "HumanEval", "chat": "chat"}
CURRENCY = {"time": "shares of the dense step's time, by the policy's step times", "keep": "net keeps"}
Point = dict[str, Any]


@table
def graded() -> str:
    """A chapter for every model whose replies were graded; nothing before one was."""
    chapters = [_chapter(size, model) for size, model in MODELS.items() if of.graded(size) is not None]
    return "\n".join(["", *chapters]) if chapters else ""


def _chapter(size: str, model: str) -> str:
    names = of.graded_files(size)
    kinds, how, currency = of.graded(size) or {}, of.settings(names[0]), of.read(names[0])["currency"]
    asked = ", ".join(f"{NAMES[kind]}: {found['problems']}" for kind, found in kinds.items())
    parts = [
        f"### Replies that are graded, {model}",
        f"Greedy replies of at most {how['max_tokens']} tokens, zero-shot, through the chat template, to the first "
        f"problems of every set ({asked}). Prompts are read densely. Budgets are {CURRENCY[currency]}. "
        "Baselines get, problem by problem, what the policy realised.",
    ]
    if solved := {kind: found["points"] for kind, found in kinds.items() if kind != "chat"}:
        parts += [_solved(solved).rstrip(), _limits(solved, currency)]
    if "chat" in kinds:
        parts += [
            "Chat replies beside the dense model's first 64 tokens. *Alike* is the part before the first other token, "
            "*identical* the share of replies without one, and KL the divergence from the dense model's predictions "
            "along its reply, nats per token.",
            _followed(kinds["chat"]["points"]).rstrip(),
        ]
    return "\n\n".join([*parts, ", ".join(f"`results/{name}.json`" for name in names) + ".\n"])


def _solved(kinds: dict[str, list[Point]]) -> str:
    """A row per arm, dense first, of every kind and budget."""
    rows = []
    for kind, points in kinds.items():
        for place, by in enumerate(_budgets(points)):
            for arm in ("dense", "policy", *_against(by)):
                if arm == "dense" and place:
                    continue  # told once for all budgets
                point = by[arm]
                setting = NAMES[kind] if arm == "dense" else f"{NAMES[kind]}, {point['budget']:g}"
                rows.append([setting, arm, *_cells(point), *_gains(point)])
    head = ("solved, % [95 %]", "tokens per reply", "cut short, %", "ms per token", "policy − arm, points",
            "policy − dense, points")  # fmt: skip
    return markdown(("Problems, budget", "Arm", *head), rows, words=2)


def _cells(point: Point) -> list[str]:
    count = len(point["by_problem"]["solved"])
    cut = f"{100 * (1 - point['ended']):.0f}" if "ended" in point else NONE
    return [rate(point["solved"], count), f"{point['tokens']:.0f}", cut, _milliseconds(point)]


def _gains(point: Point) -> list[str]:
    """Policy minus a baseline, at the policy's own point minus dense; dashes where one does not apply."""
    found = (point.get(key) for key in ("policy_minus", "policy_minus_dense"))
    return [
        NONE if one is None else interval(Difference.of(one["solved"]), 1, 100, more_is_better=True) for one in found
    ]


def _limits(kinds: dict[str, list[Point]], currency: str) -> str:
    """What the numbers cannot say."""
    halves = [
        (found["solved"]["high"] - found["solved"]["low"]) / 2
        for points in kinds.values()
        for point in points
        for found in (point.get("policy_minus"), point.get("policy_minus_dense"))
        if found is not None
    ]
    told = (
        "Intervals of what is solved are Wilson's, those of differences are over problems. *Cut short* are replies "
        "that reached the most tokens"
    )
    if "gsm8k" in kinds:
        told += "; of GSM8K such a reply is graded by the last number that it has said"
    told += ". "
    if halves and max(halves) > 0:
        told += (
            f"Intervals of differences reach up to ±{100 * max(halves):.0f} points: smaller differences between arms "
            "do not show here. "
        )
    if currency == "time":
        told += (
            "Milliseconds are those of a single row by step times that were measured before, without the prompt; this "
            "run timed nothing. "
        )
    return told + "Other prompts or examples give other scores: these are not comparable with published ones."


def _followed(points: list[Point]) -> str:
    rows = [
        [f"{by['policy']['budget']:g}", arm, _milliseconds(by[arm]), f"{100 * by[arm]['agreed']:.0f}",
         f"{100 * by[arm]['identical']:.0f}", f"{by[arm]['kl']:.4f}",
         NONE if arm == "policy" else interval(Difference.of(by[arm]["policy_minus"]["kl"]), 4)]
        for by in _budgets(points)
        for arm in ("policy", *_against(by))
    ]  # fmt: skip
    head = ("ms per token", "alike, %", "identical, %", "KL", "KL: policy − arm")
    return markdown(("Budget", "Arm", *head), rows, words=2)


def _milliseconds(point: Point) -> str:
    return f"{point['spent']['ms']:.1f}" if "ms" in point["spent"] else NONE


def _budgets(points: list[Point]) -> list[dict[str, Point]]:
    """Per budget the points by arm, dense among them."""
    [dense] = [point for point in points if point["arm"] == "dense"]
    found: dict[float, dict[str, Point]] = {}
    for point in points:
        if point["arm"] != "dense":
            found.setdefault(point["budget"], {"dense": dense})[point["arm"]] = point
    return list(found.values())


def _against(by: dict[str, Point]) -> list[str]:
    return [arm for arm in by if arm not in ("dense", "policy")]


@table
def graded_short() -> str:
    """Problems solved by dense steps and by the policy, of every model whose replies were graded."""
    rows, budgets = [], list[float]()
    for size, model in MODELS.items():
        for kind, found in (of.graded(size) or {}).items():
            if kind == "chat":
                continue
            by_budget = _budgets(found["points"])
            own = [by["policy"]["budget"] for by in by_budget]
            assert own == (budgets or own), f"graded-{size}.json has budgets {own}, another one {budgets}"
            budgets = own
            arms = [by_budget[0]["dense"], *(by["policy"] for by in by_budget)]
            cells = [rate(arm["solved"], found["problems"]) for arm in arms]
            rows.append([f"{model}, {NAMES[kind]}, {found['problems']} problems", *cells])
    return markdown(("Model, problems", "dense, %", *(f"{budget:g}, %" for budget in budgets)), rows)
