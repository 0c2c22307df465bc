"""The tables about tasks: accuracy at equal compute."""

from collections.abc import Sequence
from typing import Any

import published as of
from cells import NONE, interval, markdown, table
from published import Difference

Points = dict[float, dict[str, dict[str, Any]]]
"""By budget and arm, or task and arm."""


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


LARGEST = ("tasks-1.5b/mmlu", "tasks-1.5b/mmlu-969")
"""MMLU of the largest model; what the first one has at a budget of the second one is left out."""


LARGER, LARGER_ANSWERS = ("tasks-0.5b/mmlu-question",), ("tasks-0.5b/mmlu",)
"""MMLU of a larger model: with the questions' own tokens under control, and with the answers alone."""
LARGEST_ANSWERS = ("tasks-1.5b/mmlu-answers",)
"""The latter of the largest model."""


@table
def tasks_larger() -> str:
    """MMLU of a larger model under the policy that ships: accuracy, and the policy's differences."""
    return _mmlu(mmlu_points(LARGER))


@table
def tasks_larger_answers() -> str:
    """The same where answers alone are under control."""
    return _mmlu(mmlu_points(LARGER_ANSWERS))


@table
def tasks_largest_answers() -> str:
    """The same of the largest model."""
    return _mmlu(mmlu_points(LARGEST_ANSWERS))


@table
def tasks_largest() -> str:
    """The same of the largest model, once it was measured, with what was asked and what it cannot show."""
    names = [name for name in LARGEST if of.measured(name)]
    if not names:
        return ""
    how, points = of.settings(names[0]), mmlu_points(names)
    halves = [
        50 * (gain["high"] - gain["low"])
        for gain in (
            point["differences"]["acc"] for at in points.values() for point in at.values() if point["differences"]
        )
    ]
    controlled = (
        "The question's own tokens are under control here, too, after the examples, and every question has a budget of "
        "its own"
        if how["control"] == "question"
        else "Answers alone are under control, one token each: this says nothing about text that a model goes on from"
    )
    files = ", ".join(f"`results/{name}.json`" for name in names)
    return (
        f"The same for Qwen2.5-Coder-1.5B-Instruct: {how['fewshot']} examples, equally many questions of each subject. "
        f"{controlled}.\n\n{_mmlu(points)}\n"
        f"Intervals of differences in accuracy reach up to ±{max(halves):.1f} points: smaller differences do not show. "
        f"Shares of time are by the policy's step times; this run timed nothing. Arms spent up to {_apart(points):.3f} "
        f"more or less of it than the policy. {files}.\n"
    )


OTHERS = ("tasks-0.5b/others", "tasks-0.5b/others-150")
"""Tasks other than MMLU on a larger model; what the first one has at a budget of the second one is left out."""


LARGEST_OTHERS = ("tasks-1.5b/others",)
"""The same on the largest model."""


@table
def tasks_others() -> str:
    """A row for every budget and task, and one for the mean of all tasks."""
    return _others(other_points(OTHERS))


@table
def tasks_others_largest() -> str:
    """The same of the largest model."""
    return _others(other_points(LARGEST_OTHERS))


def _others(by_budget: Points) -> str:
    rows, arms = [], ("dense", "uniform", "constant", "allocated", "policy")
    for budget, tasks in by_budget.items():
        scores, gains = [], []
        for task, found in tasks.items():
            scores.append([100 * found[arm]["scores"]["acc"] for arm in arms])
            apart = found["uniform"]["differences"]
            gains.append(Difference.of(apart["acc"]))
            rows.append(
                [f"{budget:g}", task, f"{found['dense']['questions']}", *(f"{score:.1f}" for score in scores[-1]),
                 interval(gains[-1], 1, 100, more_is_better=True),
                 interval(Difference.of(apart["margin"]), 3, more_is_better=True)]
            )  # fmt: skip
        means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
        gain = interval(mean_of(gains), 1, 100, more_is_better=True)
        rows.append([f"{budget:g}", "*mean*", NONE, *(f"{mean:.1f}" for mean in means), gain, NONE])
    last = ("policy − uniform, points", "margin: policy − uniform")
    return markdown(("Budget", "Task", "questions", *(f"{arm}, %" for arm in arms), *last), rows, words=2)


def other_points(names: Sequence[str]) -> Points:
    """By budget and task the points of all arms and of dense, of the last of the results that has this budget."""
    found: Points = {}
    for points in (of.read(name)["points"] for name in names if of.measured(name)):
        for budget in {point["budget"] for point in points if point["arm"] == "policy"}:
            found[budget] = {}
            for point in points:
                if point["budget"] in (budget, 1):
                    found[budget].setdefault(point["task"], {})[point["arm"]] = point
    return dict(sorted(found.items()))


def mean_of(found: Sequence[Difference]) -> Difference:
    """The mean of differences on questions of different tasks, whose variances add up."""
    value = sum(one.value for one in found) / len(found)
    half = sum(((one.high - one.low) / 2) ** 2 for one in found) ** 0.5 / len(found)
    return Difference(value, value - half, value + half)


def mmlu_points(names: Sequence[str]) -> Points:
    """By budget the points of all arms and of dense, of the last of the results that has this budget."""
    found: Points = {}
    for name in names:
        points = of.read(name)["points"]
        [dense] = [point for point in points if point["arm"] == "dense"]
        for budget in {point["budget"] for point in points if point["arm"] == "policy"}:
            found[budget] = {point["arm"]: point for point in points if point["budget"] == budget} | {"dense": dense}
    return dict(sorted(found.items()))


def _apart(points: Points) -> float:
    """By how much the shares of time of arms differ from the policy's at the same budget."""
    return max(
        abs(point["realised"]["time"] - at["policy"]["realised"]["time"])
        for at in points.values() for arm, point in at.items() if arm != "dense"
    )  # fmt: skip


def _mmlu(points: Points) -> str:
    """A row for every budget."""
    arms = ("uniform", "constant", "allocated")
    rows = []
    for budget, found in points.items():
        scores = [100 * found[arm]["scores"]["acc"] for arm in ("dense", *arms, "policy")]
        gains = [found[arm]["differences"] for arm in arms]
        rows.append(
            [f"{budget:g}", f"{found['policy']['questions']}", f"{found['policy']['realised']['time']:.2f}",
             *(f"{score:.1f}" for score in scores),
             interval(Difference.of(gains[0]["acc"]), 1, 100, more_is_better=True),
             *(interval(Difference.of(gain["margin"]), more_is_better=True) for gain in gains)]
        )  # fmt: skip
    names = (*(f"{arm}, %" for arm in ("dense", *arms, "policy")), "policy − uniform, points")
    margins = (f"margin: policy − {arm}" for arm in arms)
    return markdown(("Budget", "questions", "share of time", *names, *margins), rows)
