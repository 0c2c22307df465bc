"""MMLU questions per second: static arms and a policy against lm-eval's own `hf` model, in interleaved rounds.

SmolLM2-135M; 20 questions of each of three subjects, with five examples and with none. The `hf` model gets an
untouched copy of the same weights and batches of 8; ours its default of 16. Both are timed from requests in text to
scores, tokenisation included. Where no example is given, some contexts are too short to be controlled.

    python benchmarks/tasks.py --data DATA/eval --rounds 3
    python benchmarks/tasks.py --data DATA/eval --rounds 3 --json
"""

import json
import logging
import time
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from solm.backends.torch.load import load_base
from solm.core.actions import ActionSpace
from solm.evaluation.harness import ControlledLM
from solm.evaluation.local_tasks import load_tasks
from solm.policies.schedules import Dense, Static
from solm.runtime.load import load
from timing import MODEL, arguments, machine, median

SUBJECTS = ("mmlu_astronomy", "mmlu_high_school_macroeconomics", "mmlu_professional_law")
BATCH, SPACE, NET = 8, "joint-27", 0.6


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
    options = arguments(
        __doc__,
        lambda parser: parser.add_argument("--data", type=Path, required=True),
        lambda parser: parser.add_argument("--policy", default=f"{MODEL}-{SPACE}"),
        lambda parser: parser.add_argument("--questions", type=int, default=20, help="questions of each subject"),
    )
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stock, tokenizer = load_base(MODEL, options.dtype)
    hf = HFLM(stock, tokenizer=tokenizer, batch_size=BATCH)
    lm = load(MODEL, options.policy, dtype=options.dtype)
    space, budget = ActionSpace.preset(SPACE), lm.budget(NET)
    models = {
        "hf": hf,
        "dense": ControlledLM(lm, policy=Dense(space)),
        "static": ControlledLM(lm, policy=Static(space), target=budget),
        "policy": ControlledLM(lm, policy="policy", target=budget),
    }
    total = len(SUBJECTS) * options.questions
    dtype = str(stock.dtype).removeprefix("torch.")
    result = {"dtype": dtype, "rounds": options.rounds, "questions": total, "budget": NET}
    for fewshot in (5, 0):
        asked = requests(options.data, fewshot, options.questions)
        rates: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(options.rounds + 1):
            for name, model in models.items():
                begun = time.perf_counter()
                for subject in asked:
                    model.loglikelihood(subject, disable_tqdm=True)
                if turn:  # the first round only warms up
                    rates[name].append(total / (time.perf_counter() - begun))
        result[f"{fewshot}-shot"] = {
            "questions_per_second": {name: median(found) for name, found in rates.items()},
            "times_hf": {
                name: median([ours / theirs for ours, theirs in zip(rates[name], rates["hf"], strict=True)])
                for name in ("dense", "static", "policy")
            },
        }
    result["machine"] = machine()
    if options.json:
        print(json.dumps(result))
        return
    print(f"MMLU questions per second, {dtype}, {len(SUBJECTS)} subjects x {options.questions}, net keep {NET}")
    for fewshot in (5, 0):
        found = result[f"{fewshot}-shot"]
        for name, rate in found["questions_per_second"].items():
            ratio = "" if name == "hf" else f"  {found['times_hf'][name]:.2f} x hf"
            print(f"  {fewshot}-shot  {name:8} {rate:7.2f}{ratio}")


if __name__ == "__main__":
    main()
