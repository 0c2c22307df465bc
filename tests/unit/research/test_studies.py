"""Studies on a tiny model: each finds what its name says, draws it and resumes; the command lists them all."""

import json

import pytest
import torch

from helpers.models import tokens
from helpers.texts import FISH
from helpers.timings import made_curve
from solm.core.parts import Parts
from solm.evaluation.result import Record
from solm.policies.artifact import TrainedPolicy
from solm.research import best_of, free_running, long_context, precision


def ignore(*progress) -> None:
    pass


@pytest.fixture
def source(tmp_path) -> str:
    (tmp_path / "fish.txt").write_text(FISH)
    return str(tmp_path / "fish.txt")


def check(module, found: Record) -> None:
    """What every study's result must allow."""
    again = Record.model_validate_json(found.model_dump_json())
    assert module.lines(again) == module.lines(found)
    assert module.lines(found)
    assert module.plot(found, "png").startswith(b"\x89PNG")


def test_the_best_of_many_is_beside_its_estimates_and_an_interruption_changes_nothing(value_lm, source, tmp_path):
    options = best_of.Options(data=source, budgets="0.7", trials=30, texts=3, context=60, length=8)
    found = best_of.measure(value_lm, options, None, ignore)
    check(best_of, found)
    (point,) = found.results["points"]
    assert point["best"] <= point["random_median"]
    assert point["best_estimated_from_8"]["groups"] == 3
    assert {"policy_minus_best", "policy_minus_uniform"} <= set(point)

    def stop(part, done, total):
        if done == 1:
            raise KeyboardInterrupt

    partial = tmp_path / "partial.json"
    with pytest.raises(KeyboardInterrupt):
        best_of.measure(value_lm, options, partial, stop)
    assert set(json.loads(partial.read_text())["parts"]) == {"0.7", "0.7/0"}
    assert best_of.measure(value_lm, options, partial, ignore).results == found.results
    assert partial.exists()  # until the result is written


def test_free_running_dense_text_is_what_the_dense_model_predicts(value_lm, source):
    options = free_running.Options(data=source, budgets="0.7", texts=2, context=60, length=16, baselines="uniform")
    found = free_running.measure(value_lm, options, None, ignore)
    check(free_running, found)
    assert found.results["currency"] == "keep"
    assert found.settings["data"] == ["fish.txt"], "without its folder"
    arms = found.results["points"][0]["arms"]
    assert set(arms) == {"dense", "policy", "uniform"}
    assert arms["dense"]["kl"] == pytest.approx(0, abs=1e-6)
    assert arms["policy"]["kl"] > 0.001
    assert "ms" not in arms["policy"]
    assert sum(arms["uniform"][axis] for axis in ("attention", "mlp", "bits")) / 3 == pytest.approx(0.7, abs=0.05)


def test_free_running_spends_shares_of_time_where_steps_were_timed(value_lm, source):
    timings = made_curve(value_lm.sparsity, value_lm.shapes, contexts=(50, 400)).timings
    options = free_running.Options(
        data=source, texts=2, context=60, length=16, policy="/a/folder/mine", timings="/a/folder/mine.json"
    )
    lm = value_lm.with_policy(value_lm.trained)
    lm.timings = timings
    found = free_running.measure(lm, options, None, ignore)
    low, *_ = options.values(lm.budgets(), options.seen)
    check(free_running, found)
    assert found.results["currency"] == "time"
    assert (found.settings["policy"], found.settings["timings"]) == ("mine", "mine.json"), "without their folders"
    assert len(found.results["points"]) == 3
    arms = found.results["points"][0]["arms"]
    assert set(arms) == {"dense", "policy", "constant", "uniform"}
    for name in ("policy", "constant", "uniform"):
        assert arms[name]["ms"] == pytest.approx(low * arms["dense"]["ms"], rel=0.05)
    assert f"{low:g} of the time, uniform: " in "".join(free_running.lines(found))


def test_long_contexts_compare_what_reads_the_same_share(value_lm, source):
    options = long_context.Options(data=source, contexts="90,120", length=32, texts=2)
    found = long_context.measure(value_lm, options, None, ignore)
    check(long_context, found)
    assert set(found.results["text"]) == {"90", "120"}
    for arms in found.results["text"].values():
        assert arms["constant 1"]["minus_dense"]["value"] == 0
        assert arms["constant 0.2"]["share"] < arms["constant 0.5"]["share"] < 1
        for target in ("0.2", "0.3"):
            ours, constant = arms[f"policy {target}"], arms[f"constant as policy {target}"]
            assert constant["share"] == pytest.approx(ours["share"], abs=0.02)
        assert not any("milliseconds" in arm for arm in arms.values())


def test_long_contexts_without_questions_tell_of_texts_alone(value_lm, source, tmp_path, monkeypatch):
    monkeypatch.setattr(long_context, "_questions", lambda *_: [])
    options = long_context.Options(data=source, contexts="90", length=32, texts=1, questions=0, tasks=tmp_path)
    found = long_context.measure(value_lm, options, None, ignore)
    assert set(found.results["text"]) == {"90"}
    assert found.results["retrieval"] == {}
    check(long_context, found)


def test_long_contexts_are_timed_where_it_is_asked_for(value_lm, source):
    options = long_context.Options(data=source, contexts="90", length=32, texts=1, timed=2)
    arms = long_context.measure(value_lm, options, None, ignore).results["text"]["90"]
    assert all(arm["milliseconds"] > 0 for arm in arms.values())
    assert " ms" in long_context.lines(long_context.measure(value_lm, options, None, ignore))[0]
    with pytest.raises(ValueError, match=r"--timed 33: at most the 32 tokens of --length"):
        long_context.Options(data=source, length=32, timed=33)


def test_long_contexts_measure_again_only_what_has_changed(value_lm, source, tmp_path, monkeypatch):
    asked, calls, arms = [(tokens(1, 80), 70)], [], long_context.arms
    monkeypatch.setattr(long_context, "_questions", lambda lm, folder, name, count: asked[:count])
    monkeypatch.setattr(long_context, "arms", lambda *given: calls.append(given) or arms(*given))
    options = long_context.Options(data=source, contexts="90", length=32, texts=1, questions=2, tasks=tmp_path)

    def measured(lm=value_lm, **changes) -> int:
        calls.clear()
        found = long_context.measure(lm, options.model_copy(update=changes), tmp_path / "partial", ignore)
        assert set(found.results["retrieval"]) == (set() if changes else set(long_context.SETS))
        return len(calls)

    assert measured() == 3
    assert measured() == 0
    asked.append((tokens(1, 80, seed=1), 70))
    assert measured() == 2, "the new question of both sets"
    asked[0] = (tokens(1, 80, seed=2), 70)
    assert measured() == 2, "the question in the other's place"
    assert measured(questions=0) == 0
    assert measured(questions=0, dtype="bfloat16") == 1
    assert measured(questions=0, revision="main") == 1
    other = value_lm.with_policy(
        TrainedPolicy(value_lm.trained.config.model_copy(update={"digest": "b"}), value_lm.trained.network)
    )
    assert measured(other, questions=0) == 1


def test_bfloat16_and_float32_are_scored_on_the_same_schedules(tiny_lm, source, tmp_path):
    tiny_lm.model.to(torch.float32).save_pretrained(tmp_path / "model")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "model")
    options = precision.Options(
        data=source, model=str(tmp_path / "model"), texts=4, context=90, length=20, batches=1, layer=1
    )
    found = precision.run(options, None, ignore)
    check(precision, found)
    assert found.results["costs"]["correlation"] > 0.5
    assert {name: len(shares) for name, shares in found.results["explained_of_float32"].items()} == {
        "bfloat16": 5, "float32": 5,
    }  # fmt: skip
    away = options.model_copy(update={"off_grid": tmp_path / "off-grid"})
    assert precision.run(away, None, ignore).results["largest_change"] < 1e-3
    assert (tmp_path / "off-grid/model.safetensors").exists()


@pytest.mark.parametrize("content", ["", "{", '{"key": 1, "parts": {"a": 1}}', '{"key": [1, 2]}', "[]"])
def test_parts_of_another_job_or_half_written_are_not_used(tmp_path, content):
    path = tmp_path / "parts.json"
    path.write_text(content)
    parts = Parts(path, (1, 2))
    assert "a" not in parts
    assert parts.get("a", lambda: 2) == 2
    assert Parts(path, [1, 2]).get("a", lambda: 3) == 2
