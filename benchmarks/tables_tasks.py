"""The tables about tasks: accuracy at equal compute."""

from math import sqrt
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


Points = list[dict[str, Any]]
AT_SIZE = ("uniform", "constant", "allocated", "policy")


@table
def tasks_larger() -> str:
    """The same of a larger model and a policy of `solm fit`, once it was asked: means over tasks, and every task."""
    asked = [task for task in of.TASKS if of.measured(f"tasks-0.5b/{task}")]
    if not asked:
        return ""
    points: dict[str, Points] = {task: of.read(f"tasks-0.5b/{task}")["points"] for task in asked}
    rows, low = [], []
    for task, found in points.items():
        low = sorted({point["budget"] for point in found if point["arm"] == "policy"})[:2]
        [dense] = [point for point in found if point["arm"] == "dense"]
        scores = [_point(found, arm, budget)["scores"]["acc"] for budget in low for arm in AT_SIZE]
        rows.append(
            [task, str(dense["questions"]), *(f"{100 * score:.1f}" for score in (dense["scores"]["acc"], *scores))]
        )
    names = (f"{arm} at {budget:g}" for budget in low for arm in AT_SIZE)
    return (
        "Qwen2.5-Coder-0.5B-Instruct, the policy that ships for it, the cpu backend, five examples; budgets are shares "
        "of the dense step's time. Prompts are read densely, answers under control: accuracy in per cent, mean of "
        f"{', '.join(asked)}, and differences in points.\n\n{_answers(list(points.values()))}\n"
        f"{markdown(('Task', 'questions', 'dense', *names), rows)}\n"
        f"{', '.join(f'`results/tasks-0.5b/{task}.json`' for task in asked)}.\n{_questions()}"
    )


def _questions() -> str:
    """MMLU with the question's own tokens under control, too."""
    name = "questions-0.5b/mmlu"
    if not of.measured(name):
        return ""
    points: Points = of.read(name)["points"]
    return (
        f"\nMMLU, {points[0]['questions']} questions, with the question's own tokens under control, too, and a budget "
        "for every question (the examples before it are read densely):\n\n"
        f"{_answers([points])}\n`results/{name}.json`.\n"
    )


def _answers(tasks: list[Points]) -> str:
    budgets = sorted({point["budget"] for point in tasks[0] if point["arm"] == "policy"})
    dense = sum(100 * points[0]["scores"]["acc"] for points in tasks) / len(tasks)
    rows = []
    for budget in budgets:
        time = sum(_point(points, "policy", budget)["realised"]["time"] for points in tasks) / len(tasks)
        scores = [
            sum(100 * _point(points, arm, budget)["scores"]["acc"] for points in tasks) / len(tasks) for arm in AT_SIZE
        ]
        against = [
            _more(mean_difference([_point(points, arm, budget)["differences"]["acc"] for points in tasks]))
            for arm in ("dense", *AT_SIZE[:-1])
        ]
        rows.append([f"{budget:g}", f"{time:.2f}", f"{dense:.1f}", *(f"{score:.1f}" for score in scores), *against])
    names = (f"policy − {arm}" for arm in ("dense", *AT_SIZE[:-1]))
    return markdown(("Budget", "share of time", "dense", *AT_SIZE, *names), rows)


def _point(points: Points, arm: str, budget: float) -> dict[str, Any]:
    """The point of an arm; of dense the differences that the policy's points hold, whose budget they are of."""
    [found] = [
        point for point in points if point["arm"] == ("policy" if arm == "dense" else arm) and point["budget"] == budget
    ]
    return found


def mean_difference(found: list[dict[str, float]]) -> Difference:
    """The mean of differences of different questions, with an interval from theirs as if they were normal."""
    value = sum(one["value"] for one in found) / len(found)
    half = sqrt(sum(((one["high"] - one["low"]) / 2) ** 2 for one in found)) / len(found)
    return Difference(value, value - half, value + half)


def _more(found: Difference) -> str:
    """Percentage points; bold where the policy is better beyond the noise."""
    shown = interval(found, 1, 100)
    value, _, rest = shown.partition(" ")
    return f"**{value}** {rest}" if found.low > 0 else f"{value.strip('*')} {rest}"
