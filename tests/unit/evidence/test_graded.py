"""Graded replies on a tiny model: they are what `generate` gives, and code is graded by running it."""

import json

import numpy as np
import pytest

from evidence.studies import graded
from evidence.studies.problems import Problem
from evidence.studies.replies import Prompts, reply
from solm.core.budget import Budget
from solm.evaluation.arms import Arm
from solm.runtime.prompts import encode

QUESTIONS = [
    "How many fish are in the pond in all?",
    "What is 2 + 3?",
    "A fox has 4 cubs, and each eats 3 fish. How many?",
]
LONGEST = 16


@pytest.fixture(params=["value_lm", "cpu_lm"])
def lm(request):
    return request.getfixturevalue(request.param)


def prompts_of(lm) -> Prompts:
    return Prompts(lm, [encode(lm.tokenizer, text * 2) for text in QUESTIONS])


def problems(said: list[str], **more) -> list[Problem]:
    """Problems whose replies are kept in `said`, and solved."""
    return [Problem([], solved=lambda text: said.append(text) or True, **more) for _ in QUESTIONS]


def test_replies_in_batches_are_those_of_single_rows(lm):
    prompts, said = prompts_of(lm), []
    budgets = [Budget(mlp=share, bits=12) for share in (0.6, 0.8, 1.0)]
    made = reply(prompts, problems(said), Arm(lm.policy("policy")), budgets, LONGEST, 2)
    for ids, budget, text, one in zip(prompts.ids, budgets, said, made, strict=True):
        alone = lm.generate(ids, budget=budget, max_new_tokens=LONGEST)
        assert text == alone.text
        assert one["tokens"] == len(alone.tokens)
        for axis in ("attention", "mlp", "bits", "net"):
            assert one["spent"][axis] == pytest.approx(alone.compute.realised[axis])


def test_code_is_graded_by_running_it(value_lm, tmp_path):
    programs = []

    class Strict:
        def holds(self):
            return {"network": True, "files": False}

        def run(self, program):
            programs.append(program)
            return "passed"

    record = {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"}
    (tmp_path / "code.jsonl").write_text(json.dumps(record))
    options = graded.Options(
        humaneval=tmp_path / "code.jsonl", run_code=True, budgets="0.8", max_tokens=6, policy="p", baselines="uniform"
    )
    found = graded.measure(value_lm, options, None, Strict())
    assert len(programs) == 3
    assert all(program.endswith("check(one)\n") for program in programs)
    assert {point["solved"] for point in found.results["kinds"]["humaneval"]["points"]} == {1.0}
    assert graded.lines(found)[-1] == "code ran inside of bubblewrap; not refused: files"


def test_points_weigh_what_was_spent_by_steps():
    one = {"metrics": {"solved": 1.0}, "tokens": 3, "ended": True, "steps": 2, "spent": {"net": 1.0}}
    other = {"metrics": {"solved": 0.0}, "tokens": 1, "ended": False, "steps": 0, "spent": {"net": 0.0}}
    dense, policy = graded.points({"dense": [one, one], "policy@0.8": [one, other]})
    assert (dense["solved"], policy["solved"], policy["ended"]) == (1, 0.5, 0.5)
    assert np.isclose(policy["spent"]["net"], 1)
    assert policy["policy_minus_dense"]["solved"]["value"] == -0.5
