"""Graded replies on a tiny model: what serves decodes them, arms spend alike, and an interrupted run goes on."""

import json

import numpy as np
import pytest

from evidence.studies import graded
from evidence.studies.problems import Problem
from evidence.studies.replies import Prompts, follow, reply, spent_by
from solm.core.budget import Budget
from solm.core.errors import SolmError
from solm.evaluation.arms import Arm
from solm.policies.schedules import Static
from solm.runtime.prompts import encode

QUESTIONS = [
    "How many fish are in the pond in all?",
    "What is 2 + 3?",
    "A fox has 4 cubs, and each eats 3 fish. How many?",
]
LONGEST = 16


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": text, "answer": "#### 7"}) + "\n" for text in QUESTIONS))
    return path


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


def test_a_reply_that_needs_no_more_ends(value_lm):
    said, cut = [], []
    arguments = (Arm(value_lm.policy("dense")), [Budget()] * 3, LONGEST, 2)
    reply(prompts_of(value_lm), problems(said), *arguments)
    ended = reply(prompts_of(value_lm), problems(cut, complete=lambda text: len(text) > 3), *arguments)
    assert all(whole.startswith(text) for whole, text in zip(said, cut, strict=True))
    assert all(one["ended"] for one in ended)


def test_baselines_spend_what_the_policy_spent(lm):
    prompts, budget = prompts_of(lm), Budget(attention=0.8, mlp=0.7, bits=12)
    policy = reply(prompts, problems([]), Arm(lm.policy("policy")), [budget] * 3, LONGEST, 2)
    given = [spent_by(one) for one in policy]
    uniform = reply(prompts, problems([]), Arm(Static(lm.space)), given, LONGEST, 2)
    pairs = [pair for pair in zip(policy, uniform, strict=True) if {one["steps"] for one in pair} == {LONGEST - 1}]
    assert pairs
    for ours, theirs in pairs:
        assert theirs["spent"]["mlp"] == pytest.approx(ours["spent"]["mlp"], abs=0.03)
        assert theirs["spent"]["bits"] == pytest.approx(ours["spent"]["bits"], abs=0.05)


def test_what_follows_a_dense_reply_agrees_as_far_as_it_would_say_it(lm):
    prompts, budget = prompts_of(lm), Budget(mlp=0.5, bits=9)
    for row in follow(prompts, Arm(lm.policy("dense")), [Budget()] * 3, LONGEST):
        assert row["metrics"] == {"agreed": 1, "identical": 1, "kl": pytest.approx(0, abs=1e-6)}
    rows = follow(prompts, Arm(lm.policy("policy")), [budget] * 3, LONGEST)
    assert max(row["metrics"]["kl"] for row in rows) > 0.001
    for number, row in enumerate(rows):
        said = [token.id for token in lm.generate(prompts.ids[number], budget=budget, max_new_tokens=LONGEST).tokens]
        known = prompts.dense(number, LONGEST)[0][0].tolist()
        same = [ours == theirs for ours, theirs in zip(said, known, strict=False)]
        assert row["metrics"]["agreed"] == [*same, False].index(False) / len(known)
    assert min(row["metrics"]["identical"] for row in rows) == 0


def test_the_study_tells_paired_differences_and_goes_on(value_lm, problem_file, tmp_path, monkeypatch):
    options = graded.Options(
        gsm8k=problem_file, chat=str(problem_file), budgets="0.7,0.8", limit=2, max_tokens=6, batch=2, policy="p",
        backend="torch",
    )  # fmt: skip
    found = graded.measure(value_lm, options, tmp_path / "partial")
    assert found.results["currency"] == "keep"
    for kind, metrics in (("gsm8k", {"solved"}), ("chat", {"agreed", "identical", "kl"})):
        dense, *others = found.results["kinds"][kind]["points"]
        assert dense["arm"] == "dense"
        assert [(point["arm"], point["budget"]) for point in others] == [
            (arm, budget) for budget in (0.8, 0.7) for arm in ("policy", "constant", "uniform")
        ]
        for point in others:
            key = "policy_minus_dense" if point["arm"] == "policy" else "policy_minus"
            assert set(point[key]) == set(point["by_problem"]) == metrics
            assert point["spent"]["net"] == pytest.approx(point["budget"], abs=0.12)
    assert len(graded.lines(found)) == 14
    for name in ("reply", "follow"):
        monkeypatch.setattr(graded, name, lambda *given: pytest.fail("decoded again"))
    assert graded.measure(value_lm, options, tmp_path / "partial").results == found.results


def test_code_is_graded_by_running_it(value_lm, tmp_path):
    programs = []

    class Strict:
        isolated = True

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
    assert graded.lines(found)[-1] == "code ran in namespaces; not refused: files"


def test_mistakes_are_told_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(graded.Options, "load", lambda self: pytest.fail("loaded"))
    (tmp_path / "bad.jsonl").write_text("{")
    for options, said in (
        ({}, "give problems"), ({"gsm8k": tmp_path / "bad.jsonl"}, "bad.jsonl, line 1: not JSON"),
        ({"humaneval": tmp_path / "bad.jsonl"}, "allow that with --run-code"),
    ):  # fmt: skip
        with pytest.raises(SolmError, match=said):
            graded.run(graded.Options(**options), None)


def test_points_weigh_what_was_spent_by_steps():
    one = {"metrics": {"solved": 1.0}, "tokens": 3, "ended": True, "steps": 2, "spent": {"net": 1.0}}
    other = {"metrics": {"solved": 0.0}, "tokens": 1, "ended": False, "steps": 0, "spent": {"net": 0.0}}
    dense, policy = graded.points({"dense": [one, one], "policy@0.8": [one, other]})
    assert (dense["solved"], policy["solved"], policy["ended"]) == (1, 0.5, 0.5)
    assert np.isclose(policy["spent"]["net"], 1)
    assert policy["policy_minus_dense"]["solved"]["value"] == -0.5
