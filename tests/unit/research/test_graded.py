"""Graded replies on a tiny model: what serves decodes them, arms spend alike, and mistakes are told before it loads."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.timings import made_curve
from solm.core.budget import Budget
from solm.core.errors import SolmError
from solm.evaluation.arms import Arm
from solm.evaluation.result import Record
from solm.evaluation.spent import budget_of
from solm.policies.schedules import Static
from solm.research import graded
from solm.research.replies import DenseReplies, Prompts, replies
from solm.research.sandbox import Sandbox
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


def never(text: str) -> bool:
    return False


def test_replies_in_batches_are_those_of_single_rows(lm):
    prompts = prompts_of(lm)
    budgets = [Budget(mlp=share, bits=12) for share in (0.6, 0.8, 1.0)]
    made = replies(prompts, [0, 1, 2], Arm(lm.policy("policy")), budgets, LONGEST, [never] * 3, 2)
    for ids, budget, reply in zip(prompts.ids, budgets, made, strict=True):
        alone = lm.generate(ids, budget=budget, max_new_tokens=LONGEST)
        assert reply["text"] == alone.text
        assert reply["tokens"] == len(alone.tokens)
        for axis in ("attention", "mlp", "bits", "net"):
            assert reply["spent"][axis] == pytest.approx(alone.compute.realised[axis])


def test_a_reply_that_needs_no_more_ends_and_is_told(value_lm):
    told = []
    args = ([0, 0], Arm(value_lm.policy("dense")), [Budget()] * 2, LONGEST)
    whole, cut = replies(prompts_of(value_lm), *args, [never, lambda text: len(text) > 3], 2, lambda: told.append(1))
    assert len(told) == 2
    assert whole["text"].startswith(cut["text"])
    assert (cut["ended"], whole["ended"]) == (True, whole["tokens"] < LONGEST)


def test_baselines_spend_what_the_policy_spent(lm):
    prompts = prompts_of(lm)
    asked = [Budget(attention=0.8, mlp=0.7, bits=12)] * 3
    policy = replies(prompts, [0, 1, 2], Arm(lm.policy("policy")), asked, LONGEST, [never] * 3, 2)
    given = [budget_of(reply["spent"]) for reply in policy]
    uniform = replies(prompts, [0, 1, 2], Arm(Static(lm.space)), given, LONGEST, [never] * 3, 2)
    pairs = [pair for pair in zip(policy, uniform, strict=True) if {reply["steps"] for reply in pair} == {LONGEST - 1}]
    assert pairs
    for ours, theirs in pairs:
        assert theirs["spent"]["mlp"] == pytest.approx(ours["spent"]["mlp"], abs=0.03)
        assert theirs["spent"]["bits"] == pytest.approx(ours["spent"]["bits"], abs=0.05)


def test_what_follows_a_dense_reply_agrees_as_far_as_it_would_say_it(lm):
    prompts, numbers = prompts_of(lm), [0, 1, 2]
    dense = DenseReplies(prompts, numbers, LONGEST)
    arm, budget = Arm(lm.policy("policy")), Budget(mlp=0.5, bits=9)
    for row in dense.followed(Arm(lm.policy("dense")), np.ones((3, 3))):
        assert (row["agreed"], row["kl"]) == (row["tokens"], pytest.approx(0, abs=1e-6))
    rows = dense.followed(arm, np.array([budget.shares] * 3))
    assert max(row["kl"] for row in rows) > 0.001
    for number, row in zip(numbers, rows, strict=True):
        said = [token.id for token in lm.generate(prompts.ids[number], budget=budget, max_new_tokens=LONGEST).tokens]
        known = dense.tokens[number, : dense.lengths[number]].tolist()
        same = [ours == theirs for ours, theirs in zip(said, known, strict=False)]
        assert row["agreed"] == [*same, False].index(False)
    assert min(row["agreed"] for row in rows) < LONGEST


def test_the_study_tells_paired_differences_and_goes_on(value_lm, problem_file, tmp_path):
    options = graded.Options(
        gsm8k=problem_file,
        chat=str(problem_file),
        budgets="0.7,0.8",
        limit=2,
        max_tokens=6,
        batch=2,
        policy="p",
        backend="torch",
    )
    told = []
    found = graded.measure(value_lm, options, tmp_path / "partial", lambda *progress: told.append(progress))
    again = Record.model_validate_json(found.model_dump_json())
    assert graded.lines(again) == graded.lines(found)
    assert graded.plot(found, "png").startswith(b"\x89PNG")
    assert found.results["currency"] == "keep"
    assert told[-1][1:] == (28, 28)  # 4 questions, dense and twice three arms
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
    resumed = graded.measure(value_lm, options, tmp_path / "partial", lambda *progress: pytest.fail("decoded again"))
    assert resumed.results == found.results


def test_code_is_graded_by_running_it(value_lm, tmp_path, monkeypatch):
    programs = []
    strict = SimpleNamespace(isolated=True, holds=lambda: {"network": True, "files": False})
    strict.run = lambda program: programs.append(program) or "passed"
    monkeypatch.setattr(graded, "sandbox", lambda: strict)
    record = {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"}
    (tmp_path / "code.jsonl").write_text(json.dumps(record))
    options = graded.Options(
        humaneval=tmp_path / "code.jsonl", run_code=True, budgets="0.8", max_tokens=6, policy="p", baselines="uniform"
    )
    found = graded.measure(value_lm, options, None, lambda *_: None)
    assert len(programs) == 3
    assert all(program.endswith("check(one)\n") for program in programs)
    assert {point["solved"] for point in found.results["kinds"]["humaneval"]["points"]} == {1.0}
    assert graded.lines(found)[-1] == "code ran in namespaces; not refused: files"


def test_budgets_are_shares_of_time_where_steps_were_timed(value_lm, problem_file):
    trained = value_lm.trained
    timed = made_curve(trained.config.sparsity, value_lm.shapes, contexts=(50, 400))
    offer = value_lm.with_policy(trained).offer()
    offer = type(offer)(offer.space, offer.sparsity, offer.shapes, trained, timings=timed.timings)
    asked = graded.Options(gsm8k=problem_file).asked()
    options = graded.Options(gsm8k=problem_file)
    low, middle, high = options.values(offer, options.least_seen(asked))
    assert offer.time_floor(120) < low < middle < high < 1
    with pytest.raises(SolmError, match=r"--budgets: budget 0.1 is unreachable: .* 1 of the dense step's milliseconds"):
        graded.Options(gsm8k=problem_file, budgets="0.1").values(offer, options.least_seen(asked))


def test_what_confines_code_is_asked_for_before_the_model_is_loaded(monkeypatch, tmp_path, value_lm):
    (tmp_path / "code.jsonl").write_text(json.dumps({"prompt": "def f():\n", "entry_point": "f", "test": "pass"}))

    def refuses(self, program):
        raise SolmError("no")

    monkeypatch.setattr(Sandbox, "run", refuses)
    options = graded.Options(humaneval=tmp_path / "code.jsonl", run_code=True)
    with pytest.raises(SolmError, match="generated code cannot be confined here"):
        options.check(value_lm.shapes, None, value_lm.trained)
