"""The tasks command, and the real model's answers to real questions."""

import json
import os
from pathlib import Path

import pytest
import torch

from helpers.commands import solm
from solm.evaluation.local_tasks import load_tasks

SHARED = Path(__file__).parents[3] / "shared" / "data" / "eval"


@pytest.mark.slow
def test_the_commands_answer_a_task(tiny_folder, questions, tmp_path):
    out = tmp_path / "tasks.json"
    solm("tasks", "--model", tiny_folder, "--space", "joint-8", "--tasks", "piqa", "--data", questions, "--limit", 3,
         "--budgets", "0.7", "--out", out)  # fmt: skip
    points = json.loads(out.read_text())["points"]
    assert {point["arm"] for point in points} == {"dense", "uniform", "random"}
    assert "unknown task" in solm("tasks", "--space", "joint-8", "--tasks", "nope", "--data", questions, code=2).stderr


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
            for harness in (HFLM(lm.model, tokenizer=tokenizer.full, batch_size=8), ControlledLM(lm)):
                samples = evaluate(harness, tasks, limit=24, bootstrap_iters=0)["samples"][name]
                samples.sort(key=lambda sample: sample["doc_id"])
                found.append([(s["acc"], [float(answer[0][0]) for answer in s["resps"]]) for s in samples])
            for theirs, ours in zip(*found, strict=True):
                assert theirs[0] == ours[0]
                assert theirs[1] == pytest.approx(ours[1], abs=1e-3)
