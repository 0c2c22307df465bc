"""What the pages say in words about tasks of larger models: problems that are solved, and facts from far back."""

from typing import Any

import published as of
from published import Difference
from statements import says, tied, won
from tables_tasks import (
    LARGER,
    LARGER_ANSWERS,
    LARGEST,
    LARGEST_ANSWERS,
    LARGEST_OTHERS,
    OTHERS,
    mean_of,
    mmlu_points,
    other_points,
)

RIVALS = ("allocated", "constant")
"""Arms under the policy's own allocation."""


@says("docs/results.md", "on the 0.5B in GSM8K problems solved at budget 0.8.")
@says("docs/results.md", "solve as many problems at 0.9 of the time. At 0.8 they solve fewer in GSM8K;")
@says(
    "README.md",
    "where chat replies diverge from dense by 0.04 nats per token, the 0.5B solves 14 % of 200 GSM8K problems, dense "
    "26 %. At 0.9 no difference shows",
)
@says(
    "docs/limits.md",
    "by 0.04 nats per token, greedy replies solve 14 % of 200 GSM8K problems, where dense steps solve 26",
)
@says("docs/limits.md", "Of 82 HumanEval problems they solve 65 % in place of 59 %, which is within the noise")
def what_a_small_loss_does_to_tasks() -> bool:
    kinds = of.graded("0.5b") or {}
    solved, alike = {}, []
    for kind in ("gsm8k", "humaneval"):
        points = {(p["arm"], p["budget"]): p for p in kinds[kind]["points"]}
        against = {
            budget: Difference.of(points["policy", budget]["policy_minus_dense"]["solved"]) for budget in (0.8, 0.9)
        }
        alike.append(tied(against[0.9]) and (against[0.8].high < 0 if kind == "gsm8k" else tied(against[0.8])))
        every = [points["dense", 1.0], points["policy", 0.8]]
        solved[kind] = [kinds[kind]["problems"], *(round(100 * point["solved"] + 1e-9) for point in every)]
    [chat] = [p["kl"] for p in kinds["chat"]["points"] if (p["arm"], p["budget"]) == ("policy", 0.8)]
    return all(alike) and round(chat, 2) == 0.04 and solved == {"gsm8k": [200, 26, 14], "humaneval": [82, 59, 65]}


@says(
    "docs/results.md", "as many, and more than under uniform settings and constants, which an earlier run did not show"
)
def code_that_is_graded() -> bool:
    def gains(kinds: dict[str, Any]) -> list[Difference]:
        points = [p for p in kinds["humaneval"]["points"] if p["budget"] == 0.8 and p["arm"] in ("uniform", "constant")]
        return [Difference.of(point["policy_minus"]["solved"]) for point in points]

    now, before = gains(of.graded("0.5b") or {}), gains(of.read("graded-0.5b")["kinds"])
    return len(now) == 2 and all(one.low > 0 for one in now) and all(map(tied, before))


@says("docs/results.md", "On seven other tasks it loses 3.9 points at 0.7 of the time and uniform settings 6.0")
@says(
    "docs/results-tasks.md",
    "On average the policy loses 3.9 points to dense at 0.7 of the time, and uniform settings 6.0.",
)
@says(
    "docs/results-tasks.md",
    "them is within the noise, as it is at 0.85 and on every task but LAMBADA at 0.7: one interval of",
)
@says(
    "docs/results-tasks.md",
    "constants spent 0.70 of the time (LAMBADA) to 0.71 (OpenBookQA), *allocated* up to 0.73.",
)
def other_tasks_of_the_smaller_model() -> bool:
    found = other_points(OTHERS)
    apart = [
        (budget, task)
        for budget, tasks in found.items() for task, at in tasks.items()
        if not tied(Difference.of(at["uniform"]["differences"]["acc"]))
    ]  # fmt: skip
    spent = {
        arm: {task: round(at[arm]["realised"]["time"], 2) for task, at in found[0.7].items()}
        for arm in ("policy", "uniform", "constant", "allocated")
    }
    most = {arm: max(of_tasks.values()) for arm, of_tasks in spent.items()}
    return (
        lost(found[0.7]) == [3.9, 6.0] and all(tied(mean_difference(tasks)) for tasks in found.values())
        and apart == [(0.7, "lambada_openai")] and sum(map(len, found.values())) == 14
        and {of_tasks["lambada_openai"] for of_tasks in spent.values()} == {0.7}
        and [spent[arm]["openbookqa"] for arm in spent] == list(most.values()) == [0.71, 0.71, 0.71, 0.73]
    )  # fmt: skip


def lost(tasks: dict[str, dict[str, Any]]) -> list[float]:
    """Points of accuracy that policy and uniform lose to dense, on average over tasks."""
    mean = {arm: sum(at[arm]["scores"]["acc"] for at in tasks.values()) for arm in ("dense", "policy", "uniform")}
    return [round(100 * (mean["dense"] - mean[arm]) / len(tasks), 1) for arm in ("policy", "uniform")]


def mean_difference(tasks: dict[str, dict[str, Any]], arm: str = "uniform") -> Difference:
    """Policy minus `arm` in accuracy, on average over tasks."""
    return mean_of([gain(at, arm, "acc") for at in tasks.values()])


@says(
    "docs/results-tasks.md",
    "On average the policy and uniform settings both lose 1.9 points to dense; neither that nor",
)
@says(
    "docs/results-tasks.md", "Of single tasks the policy's accuracy is above that of uniform settings on ARC-Challenge"
)
@says("docs/results-tasks.md", "and **below** on PIQA. `results/tasks-1.5b/others.json`.")
@says(
    "docs/results.md", "To uniform on PIQA, on the 1.5B at 0.7 of the time, by 6.7 points of accuracy (60 questions)."
)
@says("docs/results.md", "60 questions each, policy and uniform settings both lose 2 points at 0.7, within the noise")
def other_tasks_of_the_largest() -> bool:
    [(budget, tasks)] = other_points(LARGEST_OTHERS).items()
    against = {task: gain(at, "uniform", "acc") for task, at in tasks.items()}
    return (
        budget == 0.7 and lost(tasks) == [1.9, 1.9] and {at["dense"]["questions"] for at in tasks.values()} == {60}
        and all(tied(mean_difference(tasks, arm)) for arm in ("dense", "uniform", *RIVALS))
        and [task for task, one in against.items() if one.low > 0] == ["arc_challenge"]
        and [task for task, one in against.items() if one.high < 0] == ["piqa"]
        and round(100 * against["piqa"].value, 1) == -6.7
    )  # fmt: skip


@says("docs/results.md", "its replies diverge less from dense than under uniform settings and under constants, at both")
def replies_to_chat_prompts() -> bool:
    chat = (of.graded("0.5b") or {})["chat"]
    against = [Difference.of(p["policy_minus"]["kl"]) for p in chat["points"] if p["arm"] in ("constant", "uniform")]
    return chat["problems"] == 200 and len(against) == 4 and all(map(won, against))


@says("docs/results.md", "On 40 problems each of GSM8K and HumanEval no difference to dense steps shows at 0.9 or 0.8")
@says("docs/limits.md", "on 40 problems of each kind, no difference to dense steps shows at 0.9.")
@says("docs/limits.md", "and 18 % of GSM8K in place of 30 %, which is within the noise.")
def what_budgets_do_to_tasks_of_the_larger_model() -> bool:
    kinds = of.read("graded-1.5b")["kinds"]
    differences, solved = [], {}
    for kind in ("gsm8k", "humaneval"):
        assert kinds[kind]["problems"] == 40
        for point in kinds[kind]["points"]:
            solved[kind, point["arm"], point["budget"]] = round(100 * point["solved"])
            if point["arm"] == "policy":
                differences.append(Difference.of(point["policy_minus_dense"]["solved"]))
    known = [solved["gsm8k", "dense", 1.0], solved["gsm8k", "policy", 0.8]] == [30, 18]
    return (
        known
        and solved["humaneval", "policy", 0.8] == solved["humaneval", "dense", 1.0]
        and all(map(tied, differences))
    )


@says("docs/limits.md", "hidden value becomes less likely by 39 nats at a tenth of the pages")
@says("docs/limits.md", "three tenths no loss shows there; uniform pages lose 2.3 nats")
@says("docs/results-quality.md", "needles at three tenths of the pages, where uniform pages lose 2.3 nats.")
@says(
    "docs/results-quality.md", "At a fifth it loses 1.4 nats and uniform pages 16.8; at a tenth both lose tens of nats."
)
@says("docs/results-quality.md", "Of lines both lose 0.4 nats at a fifth.")
def facts_from_far_back_on_the_smaller_model() -> bool:
    sets = of.retrieval("retrieval-0.5b")
    needles, lines = (
        {arm: Difference.of(found["minus_dense"]) for arm, found in sets[name].items()}
        for name in ("niah_multikey", "longeval_lines")
    )
    told = [round(needles[arm].value, 1) for arm in ("uniform 0.3", "constant 0.2", "uniform 0.2")]
    tenth = [needles[arm].value for arm in ("constant 0.1", "uniform 0.1")]
    kept = tied(needles["constant 0.3"]) and needles["uniform 0.3"].low > 0
    fifth = [round(lines[arm].value, 1) for arm in ("constant 0.2", "uniform 0.2")]
    return told == [2.3, 1.4, 16.8] and round(tenth[0]) == 39 and min(tenth) > 20 and kept and fifth == [0.4, 0.4]


def gain(at: dict[str, dict[str, Any]], arm: str, metric: str) -> Difference:
    """The policy minus `arm`, from all arms' points at one budget."""
    return Difference.of(at["policy" if arm == "dense" else arm]["differences"][metric])


@says(
    "docs/results-tasks.md",
    "The policy's accuracy ties with that of every arm, dense included. Its margin is above that of",
)
@says(
    "docs/results-tasks.md",
    "at all four budgets and above that of *constant* at 0.85, and otherwise ties with those of",
)
def mmlu_answers_of_the_smaller_model() -> bool:
    points = mmlu_points(LARGER_ANSWERS)
    accuracy = [gain(at, arm, "acc") for at in points.values() for arm in ("dense", "uniform", *RIVALS)]
    uniform = [gain(at, "uniform", "margin") for at in points.values()]
    rivals = {(budget, arm): gain(at, arm, "margin") for budget, at in points.items() for arm in RIVALS}
    return (
        len(points) == 4 and all(map(tied, accuracy)) and all(margin.low > 0 for margin in uniform)
        and [key for key, margin in rivals.items() if not tied(margin)] == [(0.85, "constant")]
        and rivals[0.85, "constant"].low > 0
    )  # fmt: skip


@says("docs/limits.md", "In 2,052 questions the 0.5B's accuracy under its policy was 3 points below that under")
@says(
    "docs/results.md",
    "To uniform, on the 0.5B's accuracy in MMLU at 0.7 of the time by 3.0 points, near chance; to its",
)
@says("docs/results.md", "At 0.7 of the time the policy's accuracy is 3.0 points below that of uniform settings")
@says("docs/results-tasks.md", "This file is near chance on MMLU (25 %), also with dense steps: accuracy says little.")
@says(
    "docs/results-tasks.md",
    "At 0.7 all arms lose most of what dense has above chance, and the policy's accuracy is 3.0",
)
@says(
    "docs/results-tasks.md",
    "At 0.85 its accuracy ties with that of every arm. Its margin is above that of *uniform*, and",
)
def mmlu_of_the_smaller_model() -> bool:
    points = mmlu_points(LARGER)
    low, high = points[0.7], points[0.85]
    dense = low["dense"]["scores"]["acc"] - 0.25
    left = [low[arm]["scores"]["acc"] - 0.25 for arm in ("policy", "uniform", *RIVALS)]
    accuracy, margins = gain(low, "uniform", "acc"), [gain(at, "uniform", "margin") for at in (low, high)]
    return (
        0 < dense < 0.05 and max(left) < dense / 2 and accuracy.high < 0 and round(100 * accuracy.value, 1) == -3.0
        and all(margin.low > 0 for margin in margins) and all(gain(high, arm, "margin").high < 0 for arm in RIVALS)
        and all(tied(gain(high, arm, "acc")) for arm in ("dense", "uniform", *RIVALS))
        and low["policy"]["questions"] == 2052
    )  # fmt: skip


@says(
    "docs/results-tasks.md",
    "At 0.8 the policy's margin is above that of *uniform* and of *constant*, and ties with that of",
)
@says("docs/results-tasks.md", "its accuracy is 2.0 points above that of *uniform*, a tie, and 2.3 points below dense.")
@says("docs/results-tasks.md", "At 0.7 accuracy and margin tie with those of all other schedules.")
@says("docs/results-tasks.md", "Both are **below** dense, accuracy by 6.9 points and the margin by 0.34 nats.")
@says("docs/results.md", "On MMLU the 1.5B loses 7 points at 0.7 of the time and 2 at 0.8.")
@says("docs/results.md", "Its accuracy ties with uniform settings at both; its margin is above theirs at 0.8")
@says("docs/limits.md", "On Qwen2.5-Coder-1.5B (969 questions of MMLU, their own tokens under control) its gain over")
def mmlu_of_the_largest() -> bool:
    low, high = (mmlu_points(LARGEST)[budget] for budget in (0.7, 0.8))
    above = [gain(high, arm, "margin").low > 0 for arm in ("uniform", "constant")]
    ties = [gain(high, "allocated", "margin"), gain(high, "uniform", "acc")]
    ties += [gain(low, arm, metric) for arm in ("uniform", *RIVALS) for metric in ("acc", "margin")]
    accuracy = [round(100 * gain(*one, "acc").value, 1) for one in ((high, "uniform"), (high, "dense"), (low, "dense"))]
    margin = gain(low, "dense", "margin")
    return (
        all(above) and accuracy == [2.0, -2.3, -6.9] and all(map(tied, ties)) and gain(high, "dense", "acc").high < 0
        and gain(low, "dense", "acc").high < 0 and margin.high < 0 and round(margin.value, 2) == -0.34
        and (low["policy"]["questions"], high["policy"]["questions"]) == (1026, 969)
    )  # fmt: skip


@says(
    "docs/results-tasks.md",
    "The policy's accuracy ties with those of *uniform*, *constant* and *allocated* at all four",
)
@says(
    "docs/results-tasks.md",
    "that of *uniform* at 0.75 and 0.85, **below** that of *constant* at 0.8 by 0.009 nats, and ties otherwise.",
)
@says("docs/results-tasks.md", "accuracy is below dense at 0.75, by 1.6 points, and at 0.85, by 1.0.")
@says("docs/results-tasks.md", "Its margin is below dense at 0.75, 0.8 and 0.9, by at most 0.023 nats.")
@says("docs/results.md", "constants on MMLU of the 1.5B, answers alone at 0.8 of the time, by 0.009 nats of margin.")
def mmlu_answers_of_the_largest() -> bool:
    points = mmlu_points(LARGEST_ANSWERS)
    gains = {
        (budget, arm, metric): gain(at, arm, metric)
        for budget, at in points.items() for arm in ("dense", "uniform", *RIVALS) for metric in ("acc", "margin")
    }  # fmt: skip
    apart = {key: found.value for key, found in gains.items() if not tied(found)}
    found = {key: round(value if key[2] == "margin" else 100 * value, 3) for key, value in apart.items()}
    below = {budget: found.pop((budget, "dense", "margin")) for budget in (0.75, 0.8, 0.9)}
    accuracy = {budget: round(found.pop((budget, "dense", "acc")), 1) for budget in (0.75, 0.85)}
    over = [found.pop((budget, "uniform", "margin")) for budget in (0.75, 0.85)]
    return (
        len(points) == 4 and min(over) > 0 and accuracy == {0.75: -1.6, 0.85: -1.0}
        and min(below.values()) == -0.023 and max(below.values()) < 0 and found == {(0.8, "constant", "margin"): -0.009}
        and points[0.75]["policy"]["questions"] == 1026
    )  # fmt: skip
