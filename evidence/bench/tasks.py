"""Tasks: the answers of a policy at matched compute, and questions per second beside lm-eval's own model class.

    python evidence/bench/tasks.py answers --data DATA --folder docs/results/tasks
    python evidence/bench/tasks.py speed --data DATA/eval --rounds 3 --json

answers: budgets, number of examples and number of questions were fixed before any question was asked; the questions are
the first ones of every file, of MMLU the first of each of the 57 subjects. One JSON file a task; what was answered
already is not asked again. speed: MMLU, questions of each of three subjects, with five examples and with none. The `hf`
model gets an untouched copy of the same weights and batches of 8, ours its default of 16. Both are timed from requests
in text to scores, tokenisation included. Where no example is given, some contexts are too short to be controlled.
"""

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import solm
from common import finish, parser, tuning_text
from solm.backends.torch.load import load_base
from solm.core.files import resumable, write_text
from solm.evaluation.arms import Arm, static_arms, tuned
from solm.evaluation.harness import ControlledLM
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.tasks import TaskSettings, evaluate_tasks
from solm.policies.schedules import Dense

BUDGETS, SHOTS = (0.55, 0.65, 0.75, 0.85), 5
QUESTIONS = {
    "arc_easy": 80, "arc_challenge": 80, "openbookqa": 80, "winogrande": 100, "lambada_openai": 150, "piqa": 40,
    "hellaswag": 30, "mmlu": 6,  # per subject
}  # fmt: skip
SUBJECTS = ("mmlu_astronomy", "mmlu_high_school_macroeconomics", "mmlu_professional_law")
BATCH, NET = 8, 0.6


def answers(options: argparse.Namespace) -> None:
    lm = solm.load(options.model, options.policy, dtype=options.dtype, backend="torch")
    left = [name for name in options.tasks.split(",") if not (options.folder / f"{name}.json").exists()]
    tuning = tuning_text(options.data, lm) if left else None
    best = None if tuning is None else tuned(lm, tuning, lm.space, context=256)
    for name in left:
        assert best is not None
        count = options.questions or QUESTIONS[name]
        settings = TaskSettings(tasks=(name,), budgets=BUDGETS, limit=count, fewshot=SHOTS)
        with resumable(options.folder / f"{name}.json") as partial:
            result = evaluate_tasks(
                lm,
                load_tasks([name], options.data / "eval"),
                settings,
                lm.space,
                {"tuned": Arm(best)},
                partial,
                lambda done, total, name=name: print(f"{name}: {done}/{total}", file=sys.stderr, flush=True),
                tuning,
            )
            write_text(options.folder / f"{name}.json", result.model_dump_json(indent=2) + "\n")
        print(f"{name}: {options.folder / name}.json")


def speed(options: argparse.Namespace) -> None:
    stock, tokenizer = load_base(options.model, options.dtype)
    lm = solm.load(options.model, options.policy, dtype=options.dtype, backend="torch")
    budget = lm.budget(f"keep={NET}")
    static, arm = next(iter(static_arms(lm, lm.space).items()))
    models = {
        "hf": HFLM(stock, tokenizer=tokenizer, batch_size=BATCH),
        "dense": ControlledLM(lm, policy=Dense(lm.space)),
        static: ControlledLM(lm, policy=arm.policy, target=budget),
        "policy": ControlledLM(lm, policy="policy", target=budget),
    }
    count = options.questions or 20
    results: dict[str, Any] = {"budget": NET, "questions": len(SUBJECTS) * count}
    lines = []
    for fewshot in (5, 0):
        asked = requests(options.data, fewshot, count)
        rates: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(options.rounds + 1):
            for name, model in models.items():
                begun = time.perf_counter()
                for subject in asked:
                    model.loglikelihood(subject, disable_tqdm=True)
                if turn:  # the first round only warms up
                    rates[name].append(len(SUBJECTS) * count / (time.perf_counter() - begun))
        ratios = {name: [a / b for a, b in zip(found, rates["hf"], strict=True)] for name, found in rates.items()}
        results[f"{fewshot}-shot"] = {
            "questions_per_second": {name: statistics.median(found) for name, found in rates.items()},
            "times_hf": {name: statistics.median(found) for name, found in ratios.items() if name != "hf"},
        }
        lines += [
            f"{fewshot}-shot  {name:8} {statistics.median(found):7.2f} per second" for name, found in rates.items()
        ]
    finish("tasks-speed", options, results, lines)


def requests(data: Path, fewshot: int, questions: int) -> list[list[Instance]]:
    """Per subject what lm-eval asks a model about its first questions."""
    asked = []
    for subject in SUBJECTS:
        (task,) = load_tasks([subject], data)[subject].values()
        task.set_config(key="num_fewshot", value=fewshot)
        task.build_all_requests(limit=questions)
        asked.append(list(task.instances))
    return asked


def main() -> None:
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = parser(__doc__, "dtype", "rounds")
    options.add_argument("what", choices=("answers", "speed"))
    options.add_argument("--data", type=Path, required=True, help="folder with eval/ and train/; speed: the former")
    options.add_argument("--policy", help="by default fine's for answers, joint-27's for speed")
    options.add_argument("--tasks", default=",".join(QUESTIONS))
    options.add_argument("--questions", type=int, help="of every task or subject, in place of the published numbers")
    options.add_argument("--folder", type=Path, default=Path("docs/results/tasks"))
    asked = options.parse_args()
    asked.policy = asked.policy or f"builtin:smollm2-135m-{'fine' if asked.what == 'answers' else 'joint-27'}"
    (answers if asked.what == "answers" else speed)(asked)


if __name__ == "__main__":
    main()
