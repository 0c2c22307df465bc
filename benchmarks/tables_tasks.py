"""The tables about tasks: accuracy at equal compute."""

from typing import Any

import published as of
from cells import interval, markdown, table
from published import Difference


@table
def tasks() -> str:
    """Means over tasks: accuracy of dense and policy, and the policy's differences."""
    points = {task: of.task_points(task) for task in of.TASKS}
    budgets = sorted({point["budget"] for point in points["mmlu"] if point["arm"] != "dense"})
    arms = ("dense", "uniform", "allocated", "tuned", "policy")

    def score(task: str, arm: str, budget: float) -> float:
        key = of.ARMS.get(arm, arm)
        [found] = [p for p in points[task] if p["arm"] == key and (arm == "dense" or p["budget"] == budget)]
        return 100 * found["scores"]["acc"]

    rows = [
        [f"{budget:g}", *(f"{sum(score(task, arm, budget) for task in points) / len(points):.1f}" for arm in arms)]
        for budget in budgets
    ]
    return markdown(("Net keep", *arms), rows)


@table
def task_list() -> str:
    rows = []
    for task in of.TASKS:
        points = of.task_points(task)
        budgets = sorted({point["budget"] for point in points if point["arm"] != "dense"})
        by = {(point["arm"], point["budget"]): point for point in points}
        [dense] = [point for point in points if point["arm"] == "dense"]
        rows.append(
            [task, str(dense["questions"]), f"{100 * dense['scores']['acc']:.1f}",
             *(f"{100 * by['policy', budget]['scores']['acc']:.1f}" for budget in budgets)]
        )  # fmt: skip
    return markdown(("Task", "questions", "dense", *(f"policy at {budget:g}" for budget in budgets)), rows)


@table
def tasks_larger() -> str:
    """MMLU of a larger model under a policy of `solm fit`: accuracy, and the policy's differences."""
    return _mmlu("tasks-0.5b/mmlu")


@table
def tasks_largest() -> str:
    """The same of the largest model, once it was measured, with what was asked and what it cannot show."""
    name = "tasks-1.5b/mmlu"
    if not of.measured(name):
        return ""
    found = of.read(name)
    how, points = found["settings"], found["points"]
    halves = [
        50 * (gain["high"] - gain["low"])
        for gain in (point["differences"]["acc"] for point in points if point["differences"])
    ]
    controlled = (
        "The question's own tokens are under control here, too, after the examples, and every question has a budget of "
        "its own"
        if how["control"] == "question"
        else "Answers alone are under control, one token each: this says nothing about text that a model goes on from"
    )
    return (
        f"The same for Qwen2.5-Coder-1.5B-Instruct: {how['fewshot']} examples, the first {how['limit']} questions of "
        f"each subject, {points[0]['questions']} in all. {controlled}.\n\n{_mmlu(name)}\n"
        f"Intervals of differences in accuracy reach up to ±{max(halves):.1f} points: smaller differences do not show. "
        f"Shares of time are by the policy's step times; this run timed nothing. Arms spent up to {_apart(points):.3f} "
        f"more or less of it than the policy. `results/{name}.json`.\n"
    )


def _apart(points: list[dict[str, Any]]) -> float:
    """By how much the shares of time of arms differ from the policy's at the same budget."""
    times = {(point["budget"], point["arm"]): point["realised"]["time"] for point in points if point["arm"] != "dense"}
    return max(abs(time - times[budget, "policy"]) for (budget, _), time in times.items())


def _mmlu(name: str) -> str:
    """A row for every budget."""
    points = of.read(name)["points"]
    [dense] = [point for point in points if point["arm"] == "dense"]
    arms = ("uniform", "constant", "allocated")
    rows = []
    for budget in sorted({point["budget"] for point in points if point["arm"] == "policy"}):
        found = {point["arm"]: point for point in points if point["budget"] == budget}
        scores = [100 * point["scores"]["acc"] for point in (dense, *(found[arm] for arm in (*arms, "policy")))]
        gains = [found[arm]["differences"] for arm in arms]
        rows.append(
            [f"{budget:g}", f"{found['policy']['realised']['time']:.2f}", *(f"{score:.1f}" for score in scores),
             interval(Difference.of(gains[0]["acc"]), 1, 100, more_is_better=True),
             *(interval(Difference.of(gain["margin"]), more_is_better=True) for gain in gains)]
        )  # fmt: skip
    names = (*(f"{arm}, %" for arm in ("dense", *arms, "policy")), "policy − uniform, points")
    margins = (f"margin: policy − {arm}" for arm in arms)
    return markdown(("Budget", "share of time", *names, *margins), rows)
