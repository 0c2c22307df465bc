"""The tables of docs/tasks-results.md: the shipped policy on tasks at matched compute, among close levels.

    python benchmarks/task_results.py --data DATA
    python benchmarks/task_results.py --table

DATA is a folder with eval/ (the tasks) and train/ (text that tuned is chosen on). Budgets, number of examples
and number of questions were fixed before any question was asked; the questions are the first ones of every file, of
MMLU the first of each of the 57 subjects. One JSON file a task; what was answered already is not asked again.
"""

import argparse
import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

from solm.core.actions import ActionSpace
from solm.core.files import write_text
from solm.data.text import documents
from solm.data.windows import stream_of
from solm.evaluation.arms import tuned
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.tasks import TaskSettings, evaluate_tasks
from solm.runtime.load import load

BUDGETS, SHOTS, SPACE = (0.55, 0.65, 0.75, 0.85), 5, "fine"
QUESTIONS = {
    "arc_easy": 80,
    "arc_challenge": 80,
    "openbookqa": 80,
    "winogrande": 100,
    "lambada_openai": 150,
    "mmlu": 6,  # per subject
    "piqa": 40,
    "hellaswag": 30,
}
ARMS = ("uniform", "static", "tuned", "random")
_NORMAL = statistics.NormalDist().inv_cdf(0.975)


def answer(options: argparse.Namespace) -> None:
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lm = load("builtin:smollm2-135m", options.policy)
    assert lm.tokenizer is not None
    space = ActionSpace.preset(SPACE)
    left = [name for name in options.tasks.split(",") if not (options.out / f"{name}.json").exists()]
    if not left:
        return
    texts = documents(str(options.data / "train/web"))[:500] + documents(str(options.data / "train/wiki"))[:500]
    tuned_arm = tuned(lm, stream_of(texts, lm.tokenizer, "train/web, train/wiki"), space, context=256)
    for name in left:
        settings = TaskSettings(tasks=(name,), budgets=BUDGETS, limit=QUESTIONS[name], fewshot=SHOTS)
        result = evaluate_tasks(
            lm,
            load_tasks([name], options.data / "eval"),
            settings,
            space,
            {"tuned": tuned},
            options.out / f"{name}.partial",
            lambda done, total, name=name: print(f"{name}: {done}/{total}", flush=True),
        )
        write_text(options.out / f"{name}.json", result.model_dump_json(indent=2) + "\n")


def table(folder: Path) -> None:
    """Markdown: scores of every task that was answered, then the policy's differences, averaged over them too."""
    files = {name: folder / f"{name}.json" for name in QUESTIONS}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    points = {
        (name, point["arm"], point["budget"]): point for name, result in results.items() for point in result["points"]
    }
    print("| task | questions | net keep | realised | dense | policy | " + " | ".join(ARMS) + " |")
    print("| --- | --- | --- | --- | --- | --- |" + " --- |" * len(ARMS))
    for name in results:
        dense = points[name, "dense", 1.0]
        for budget in BUDGETS:
            policy = points[name, "policy", budget]
            cells = [f"{100 * dense['scores']['acc']:.1f}", f"{100 * policy['scores']['acc']:.1f}"]
            cells += [f"{100 * points[name, arm, budget]['scores']['acc']:.1f}" for arm in ARMS]
            print(
                f"| {name} | {dense['questions']} | {budget} | {policy['realised']['net']:.3f} | "
                + " | ".join(cells)
                + " |"
            )
    for metric, unit, digits in (("acc", 100, 1), ("margin", 1, 3)):
        print(f"\n{metric}: policy minus the arm\n")
        print("| task | net keep | " + " | ".join(ARMS) + " | dense |")
        print("| --- | --- |" + " --- |" * (len(ARMS) + 1))
        for budget in BUDGETS:
            for name in results:
                found = [points[name, arm, budget]["differences"][metric] for arm in ARMS]
                found.append(points[name, "policy", budget]["differences"][metric])
                cells = [_cell(d["value"], d["low"], d["high"], unit, digits) for d in found]
                print(f"| {name} | {budget} | " + " | ".join(cells) + " |")
            cells = [_cell(*_pooled(points, list(results), arm, budget, metric), unit, digits) for arm in ARMS]
            cells.append(_cell(*_pooled(points, list(results), "policy", budget, metric), unit, digits))
            print(f"| *mean of the tasks* | {budget} | " + " | ".join(cells) + " |")


def _pooled(
    points: dict[tuple[str, str, float], dict[str, Any]], tasks: list[str], arm: str, budget: float, metric: str
) -> tuple[float, float, float]:
    """Unweighted mean over tasks, whose questions are independent, with a normal 95 % interval from theirs."""
    found = [points[task, arm, budget]["differences"][metric] for task in tasks]
    mean = statistics.fmean(d["value"] for d in found)
    error = math.hypot(*((d["high"] - d["low"]) / (2 * _NORMAL) for d in found)) / len(found)
    return mean, mean - _NORMAL * error, mean + _NORMAL * error


def _cell(value: float, low: float, high: float, unit: float, digits: int) -> str:
    text = f"{unit * value:+.{digits}f}"
    return f"{f'**{text}**' if low > 0 else text} [{unit * low:+.{digits}f}, {unit * high:+.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--policy", default=f"builtin:smollm2-135m-{SPACE}")
    parser.add_argument("--tasks", default=",".join(QUESTIONS))
    parser.add_argument("--out", type=Path, default=Path("docs/results/tasks"))
    parser.add_argument("--table", action="store_true", help="Print what was found, as Markdown, and ask nothing.")
    options = parser.parse_args()
    if options.data is None and not options.table:
        parser.error("give --data to answer, or --table")
    if options.table:
        table(options.out)
    else:
        answer(options)


if __name__ == "__main__":
    main()
