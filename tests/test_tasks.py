"""lm-eval tasks over local files, all arms on the same questions, and the command."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from solm.core.actions import ActionSpace
from solm.core.allocation import Allocation
from solm.core.errors import DataError
from test_cli import solm

pytest.importorskip("lm_eval")
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.show import task_table
from solm.evaluation.tasks import TaskSettings, evaluate_tasks

SHARED = Path(__file__).parents[2] / "shared" / "data" / "eval"
FRUIT = ["apple", "pear", "plum", "fig"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Every task with 24 questions made up here, in the form of the real files."""
    root = tmp_path_factory.mktemp("tasks")
    files = {
        "arc_easy": {"query": "Question: Which is fruit {n}?", "choices": FRUIT, "gold": 2},
        "openbook_qa": {"query": "Fruit {n} grows on a", "choices": FRUIT, "gold": 1},
        "hellaswag_val": {"query": "Baking: Cake {n} is", "choices": FRUIT, "gold": 3},
        "piqa": {"query": "Question: How to peel fruit {n}?\n", "choices": ["with a knife", "not"], "gold": 0},
        "winogrande": {
            "context_options": ["Ann met Eve {n} because Ann", "Ann met Eve {n} because Eve"],
            "continuation": "was there.", "gold": 1,
        },
        "longeval_200_lines": {
            "random_idx": ["big-cat", 1], "expected_number": 417, "prompt": "line big-cat: <417> {n}\nWhat is it? ",
        },
        "lambada_openai": {"context": "It rained all day {n} and so they stayed at", "continuation": "home"},
    }  # fmt: skip
    for name, record in files.items():
        lines = [json.dumps(record).replace("{n}", str(n)) for n in range(24)]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for split, count in (("dev", 5), ("test", 6)):
        (root / "mmlu" / split).mkdir(parents=True)
        with (root / "mmlu" / split / f"anatomy_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", *(f"choice{index}" for index in range(4)), "answer"])
            writer.writerows([[f'What, "{n}", is {split}?', *FRUIT, n % 4] for n in range(count)])
    return root


def prompt(task, index: int = 0) -> tuple[str, object]:
    document = list(task.eval_docs)[index]
    return task.doc_to_text(document), task.doc_to_target(document)


def test_local_tasks_ask_in_lm_evals_own_words(data):
    wanted = ["arc_easy", "openbookqa", "hellaswag", "piqa", "winogrande", "lambada_openai", "mmlu"]
    found = load_tasks(wanted, data)
    assert list(found) == wanted
    assert list(found["mmlu"]) == ["mmlu_anatomy"]
    # Half of so few questions are examples.
    assert prompt(found["arc_easy"]["arc_easy"]) == ("Question: Which is fruit 12?\nAnswer:", 2)
    assert prompt(found["openbookqa"]["openbookqa"]) == ("Fruit 12 grows on a", 1)
    assert prompt(found["piqa"]["piqa"])[0].endswith("?\nAnswer:")
    assert prompt(found["lambada_openai"]["lambada_openai"])[1] == " home"
    assert prompt(found["mmlu"]["mmlu_anatomy"], 1)[0] == (
        'What, "1", is test?\nA. apple\nB. pear\nC. plum\nD. fig\nAnswer:'
    )
    lines = load_tasks(["longeval_lines"], data)["longeval_lines"]["longeval_lines"]
    assert prompt(lines) == ("line big-cat: <417> 12\nWhat is it?\nline big-cat: REGISTER_CONTENT is", " <417>")
    task = found["winogrande"]["winogrande"]
    document = next(iter(task.eval_docs))
    assert task.doc_to_choice(document) == ["Ann met Eve 12 because Ann", "Ann met Eve 12 because Eve"]
    assert task.doc_to_target(document) == "was there."
    assert task.doc_to_text(document) == 1


def test_all_arms_answer_the_same_questions_at_what_was_asked(tiny_lm, data, tmp_path):
    space = ActionSpace(mlp=(0.4, 1.0), bits=(5, 16))
    settings = TaskSettings(tasks=("arc_easy", "lambada_openai"), budgets=(0.8,), limit=6, fewshot=3, batch=4)
    tasks = load_tasks(list(settings.tasks), data)
    calls = []
    result = evaluate_tasks(tiny_lm, tasks, settings, space, progress=lambda done, total: calls.append((done, total)))
    assert [point.arm for point in result.points] == ["dense", "uniform", "random"] * 2
    assert all(point.questions == 6 for point in result.points)
    assert calls[-1] == (6, 6)
    uniform = result.points[1]
    assert uniform.requested["net"] == pytest.approx(0.8)
    assert uniform.realised["net"] == pytest.approx(0.8, abs=0.03)
    assert result.points[0].realised["net"] == 1
    assert result.points[4].scores["margin"] < 0  # no choice: the target's own log-likelihood
    assert "lambada_openai" in str(task_table(result).columns[0]._cells)


def test_uniform_ignores_the_allocation(tiny_lm, data, monkeypatch):
    space = ActionSpace(mlp=(0.4, 1.0))
    settings = TaskSettings(tasks=("arc_easy",), budgets=(0.85,), limit=6, fewshot=3, batch=4)
    tasks = load_tasks(["arc_easy"], data)
    plain = evaluate_tasks(tiny_lm, tasks, settings, space)
    line = np.arange(21) / 20
    more, less = (tuple((line + sign * 0.8 * line * (1 - line)).round(9).tolist()) for sign in (1, -1))
    layers = tiny_lm.control.shapes.layers
    monkeypatch.setattr(
        tiny_lm, "sparsity", tiny_lm.sparsity.under(Allocation(attention=(more,) * layers, mlp=(less,) * layers))
    )
    dealt = evaluate_tasks(tiny_lm, tasks, settings, space)
    dealt, plain = ({point.arm: point for point in result.points} for result in (dealt, plain))
    assert dealt["uniform"].scores == plain["uniform"].scores
    assert dealt["uniform"].realised == plain["uniform"].realised
    assert dealt["allocated"].scores != plain["uniform"].scores


def test_an_interrupted_run_goes_on(tiny_lm, data, tmp_path):
    space, partial = ActionSpace(mlp=(0.4, 1.0)), tmp_path / "partial"
    settings = TaskSettings(tasks=("openbookqa",), budgets=(0.8,), limit=4, fewshot=5)
    tasks = load_tasks(["openbookqa"], data)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(tiny_lm, tasks, settings, space, partial=partial, progress=stop)
    kept = json.loads(partial.read_text())["parts"]
    assert sorted(kept) == ["openbookqa/dense@1", "openbookqa/uniform@0.8"]
    whole = evaluate_tasks(tiny_lm, tasks, settings, space, partial=partial)
    again = evaluate_tasks(tiny_lm, tasks, settings, space)
    assert whole.points == again.points
    assert not partial.exists()


def test_what_cannot_be_read_is_named(data, tmp_path):
    with pytest.raises(DataError, match="unknown task 'arc_esay'"):
        load_tasks(["arc_esay"], data)
    with pytest.raises(DataError, match="there is no folder"):
        load_tasks(["arc_easy"], tmp_path / "none")
    (tmp_path / "piqa.jsonl").write_text('{"query": "half')
    with pytest.raises(DataError, match=r"piqa\.jsonl"):
        load_tasks(["piqa"], tmp_path)


@pytest.mark.slow
def test_the_commands_answer_a_task(tiny_folder, data, tmp_path):
    out = tmp_path / "tasks.json"
    solm("tasks", "--model", tiny_folder, "--space", "joint-8", "--tasks", "piqa", "--data", data, "--limit", 3,
         "--budgets", "0.7", "--json", out)  # fmt: skip
    points = json.loads(out.read_text())["points"]
    assert {point["arm"] for point in points} == {"dense", "uniform", "random"}
    assert "unknown task" in solm("tasks", "--space", "joint-8", "--tasks", "nope", "--data", data, code=2).stderr


@pytest.mark.slow
def test_real_questions_score_as_with_lm_evals_own_model(real_model):
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the project")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    import solm as package
    from solm.evaluation.harness import ControlledLM

    model, tokenizer = real_model
    torch.manual_seed(0)
    with package.attach(model, tokenizer=tokenizer) as lm:
        for name in ("arc_easy", "hellaswag", "mmlu_anatomy"):
            tasks = {"tasks": load_tasks([name], SHARED)[name], "groups": {}, "group_map": {}}
            found = []
            for harness in (HFLM(lm.model, tokenizer=tokenizer, batch_size=8), ControlledLM(lm)):
                samples = evaluate(harness, tasks, limit=24, bootstrap_iters=0)["samples"][name]
                samples.sort(key=lambda sample: sample["doc_id"])
                found.append([(s["acc"], [float(answer[0][0]) for answer in s["resps"]]) for s in samples])
            for theirs, ours in zip(*found, strict=True):
                assert theirs[0] == ours[0]
                assert theirs[1] == pytest.approx(ours[1], abs=1e-3)
