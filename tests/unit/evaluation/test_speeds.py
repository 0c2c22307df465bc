"""One prompt decoded dense and under budgets: the dense one first, times of steps, and how the texts differ."""

import json
from dataclasses import replace

import pytest
import torch

from helpers.texts import FISH
from helpers.timings import made_curve
from solm.core.errors import SolmError
from solm.evaluation import speeds as module
from solm.evaluation.report.quickstart import render, summary
from solm.evaluation.speeds import Speeds, difference, side_by_side
from solm.runtime.reply import step_milliseconds

BUDGETS = [1.0, 0.75]


@pytest.fixture
def speeds(value_lm):
    stages = []
    ids = value_lm.encode(FISH[:150])
    found = side_by_side(value_lm, ids, "What is <it>?", BUDGETS, 24, 2, lambda *told: stages.append(told))
    assert stages[0] == ("reading the prompt", 0, 1)
    assert [told[1:] for told in stages[1:]] == [(done, 6) for done in range(7)]
    return found


def test_dense_comes_first_and_the_others_are_told_against_it(speeds, value_lm):
    dense, whole, cheap = speeds.found
    assert [one.budget for one in speeds.found] == [None, *BUDGETS]
    reply = value_lm.generate(FISH[:150], policy="dense", max_new_tokens=24)
    assert (dense.text, dense.tokens, dense.bytes) == (reply.text, 24, 1)
    assert difference(speeds, whole) == "the same text as dense"
    assert cheap.bytes == pytest.approx(0.75, abs=0.05)
    assert max(cheap.attention, cheap.mlp) < 1
    assert cheap.name == "budget 0.75"
    assert speeds.factor(dense) == 1
    assert speeds.factor(cheap) == pytest.approx(dense.milliseconds / cheap.milliseconds)
    controlled = value_lm.generate(FISH[:150], budget=0.75, max_new_tokens=24)
    assert cheap.text == controlled.text
    ours, theirs = ([token.id for token in one.tokens] for one in (reply, controlled))
    assert ours[: cheap.same] == theirs[: cheap.same]
    assert ours[: cheap.same + 1] != theirs[: cheap.same + 1] or ours == theirs
    assert module.table(speeds).row_count == 3


@pytest.mark.parametrize("own", [{}, {"repetition_penalty": 1.1}])
def test_steps_after_the_end_of_a_reply_are_timed_and_not_shown(value_lm, own):
    """A prompt that the dense model answers with the token that ends a reply."""
    ids, config = value_lm.encode(FISH[:150]), value_lm.model.generation_config
    for name, value in own.items():
        setattr(config, name, value)
    config.eos_token_id = value_lm.generate(ids, policy="dense", max_new_tokens=1).tokens[0].id
    found = side_by_side(value_lm, ids, "Why?", [1.0], 24, 1)
    assert [one.tokens for one in found.found] == [1, 1]
    assert all(one.milliseconds > 0 for one in found.found)
    assert found.found[0].text == value_lm.generate(ids, policy="dense", max_new_tokens=24).text
    assert module.table(found).row_count == 2
    assert difference(found, found.found[1]) == "the same text as dense"
    with pytest.raises(SolmError, match="needs at least 3 tokens, this reply has 2"):
        side_by_side(value_lm, ids, "Why?", [1.0], 2, 1)


def test_budgets_are_shares_of_time_where_steps_were_timed(speeds, value_lm):
    assert speeds.budgets == "A budget is the share of the dense step's bytes."
    lm = value_lm.with_policy(value_lm.trained)
    lm.timings = made_curve(lm.sparsity, lm.shapes, contexts=(50, 400)).timings
    found = side_by_side(lm, lm.encode(FISH[:150]), "Why?", [0.9], 24, 1)
    assert found.budgets == "A budget is the share of the dense step's time, by measured step times."
    reply = lm.generate(FISH[:150], budget=0.9, max_new_tokens=24)
    assert reply.compute.realised["time"] == pytest.approx(0.9, abs=0.05)
    assert found.found[1].mlp == pytest.approx(reply.compute.realised["mlp"])


def test_the_json_form_holds_everything(speeds):
    assert Speeds.from_dict(json.loads(json.dumps(speeds.as_dict()))) == speeds
    with pytest.raises((KeyError, TypeError)):
        Speeds.from_dict({"found": [{}]})


def test_the_step_that_takes_over_the_prompt_is_not_timed():
    assert step_milliseconds([0.0, 9.0, 9.002, 9.004]) == pytest.approx(2)
    assert step_milliseconds([0.0, 9.0]) is None


def test_the_report_begins_with_speeds_and_says_what_was_measured(speeds, result):
    page = render(result, b"png", "Why?", {}, {"speeds": 12.3, "training": 60.0}, speeds)
    parts = [
        page.index(words)
        for words in ("speeds 12, training 60, all 72", "Speed: after 150 tokens", "What the dial saves", "Measured: ")
    ]
    assert parts == sorted(parts)
    assert "What is &lt;it&gt;?" in page
    assert "budget 0.75" in page


def test_the_summary_tells_speed_quality_and_what_the_sample_can_tell(speeds, result):
    speed, *quality, sample = summary(speeds, result)
    assert f"under budget 0.75 ({speeds.factor(speeds.found[2]):.2f} times as fast)" in speed
    assert f"{result.settings['texts']} texts of {result.settings['length']} tokens" in sample
    budgets = len(result.settings["budgets"])
    assert len(quality) == 2 * budgets
    assert all("of the dense bytes; perplexity" in line for line in quality[:budgets])
    assert all("net keep 0." in line and "too few texts to judge" in line for line in quality[budgets:])
    simulated = replace(speeds, note="No compiler.")
    assert summary(simulated, result)[0] == "Speed: not measured. No compiler."


def test_without_the_engine_the_note_says_why_and_what_to_do(value_lm, tmp_path, monkeypatch):
    from solm import quickstart

    def load(model, policy, backend, **options):
        if backend == "cpu":
            raise SolmError("the cpu backend needs a C++20 compiler")
        return value_lm

    monkeypatch.setattr(quickstart, "load", load)
    monkeypatch.setattr(quickstart, "find_compiler", lambda: None)
    monkeypatch.setattr(quickstart, "SIMULATED", {"context": 100, "budgets": [0.9, 0.8], "tokens": 6, "rounds": 1})
    found = quickstart.decode(tmp_path, lambda *told: None, quickstart.Clock())
    assert found.note.startswith("the cpu backend needs a C++20 compiler; install one (apt install g++")
    assert "its speeds say nothing" in found.note
    assert len(found.found) == 3
    assert (tmp_path / "speeds.json").exists()
    assert torch.get_num_threads() == found.threads
