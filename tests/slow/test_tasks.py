"""The tasks command, and the real model's answers to real questions."""

import os
from pathlib import Path

import pytest
import torch

from solm.evaluation.local_tasks import load_tasks

SHARED = Path(__file__).parents[3] / "shared" / "data" / "eval"


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
