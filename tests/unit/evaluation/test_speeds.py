"""One prompt decoded dense and under budgets: the dense one first, times of steps, and how the texts differ."""

import pytest
import torch

from helpers.texts import FISH
from solm.core.budget import Budget
from solm.core.errors import SolmError
from solm.evaluation import speeds as module
from solm.evaluation.report.quickstart import render
from solm.evaluation.speeds import difference, side_by_side, step_milliseconds

BUDGETS = [Budget(attention=1, mlp=1), Budget(attention=0.5, mlp=0.5, bits=8)]


@pytest.fixture
def speeds(value_lm):
    stages = []
    ids = value_lm.encode(FISH[:150])
    found = side_by_side(
        value_lm, ids, "What is <it>?", BUDGETS, 24, 2, lambda done, total: stages.append((done, total))
    )
    assert stages[-1] == (7, 7)
    assert stages == sorted(stages)
    return found


def test_dense_comes_first_and_the_others_are_told_against_it(speeds, value_lm):
    dense, whole, cheap = speeds.found
    assert dense.budget is None
    assert [one.budget for one in (whole, cheap)] == BUDGETS
    assert dense.reply.text == value_lm.generate(FISH[:150], policy="dense", max_new_tokens=24).text
    assert difference(speeds, whole) == "the same text as dense"
    assert cheap.reply.compute.bytes < whole.reply.compute.bytes
    assert cheap.name == "50% of KV pages, 50% of MLP channels"
    assert speeds.factor(dense) == 1
    assert speeds.factor(cheap) == pytest.approx(dense.milliseconds / cheap.milliseconds)
    ours = [token.id for token in dense.reply.tokens]
    theirs = [token.id for token in cheap.reply.tokens]
    assert ours[: cheap.same] == theirs[: cheap.same]
    assert ours[: cheap.same + 1] != theirs[: cheap.same + 1] or ours == theirs
    record = speeds.as_dict()
    assert record["prompt_tokens"] == 150
    assert [row["factor"] for row in record["decoded"]] == [speeds.factor(one) for one in speeds.found]
    assert module.table(speeds).row_count == 3


def test_the_step_that_takes_over_the_prompt_is_not_timed():
    assert step_milliseconds([0.0, 9.0, 9.002, 9.004]) == pytest.approx(2)
    assert step_milliseconds([0.0, 9.0]) is None


def test_the_report_begins_with_speeds_and_says_what_was_measured(speeds, result):
    page = render(result, b"png", "Why?", {}, 60.0, speeds)
    parts = [page.index(words) for words in ("What the dial saves", "How the trained policy compares", "Measured: ")]
    assert parts == sorted(parts)
    assert "What is &lt;it&gt;?" in page
    assert "50% of KV pages" in page


def test_without_the_engine_the_note_says_why_and_what_to_do(value_lm, tmp_path, monkeypatch):
    from solm import quickstart

    def load(model, policy, backend, **options):
        if backend == "cpu":
            raise SolmError("the cpu backend needs a C++20 compiler")
        return value_lm

    monkeypatch.setattr(quickstart, "load", load)
    monkeypatch.setattr(quickstart, "find_compiler", lambda: None)
    monkeypatch.setattr(quickstart, "SIMULATED", {"context": 100, "tokens": 6, "rounds": 1})
    found = quickstart.decode(tmp_path, lambda *told: None)
    assert found.note.startswith("the cpu backend needs a C++20 compiler; install one (apt install g++")
    assert "its speeds say nothing" in found.note
    assert len(found.found) == 3
    assert (tmp_path / "speeds.json").exists()
    assert torch.get_num_threads() == found.threads
