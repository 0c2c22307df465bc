"""Evaluation: arms matched in budget, interruption, the result file and what is shown of it."""

import json

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import SPARSITY, network, under_values
from helpers.timings import made_timings
from solm.core.actions import ActionSpace
from solm.core.cost import relative_bytes
from solm.core.errors import BudgetError
from solm.core.sparsity import SparsityConfig
from solm.evaluation import show
from solm.evaluation.arms import Arm, BaselineRequest, random
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.result import EvaluationResult
from solm.evaluation.texts import stream_of
from solm.policies.artifact import TrainedPolicy
from solm.policies.schedules import Dense, Static, static

SETTINGS = EvaluationSettings(budgets=(0.6, 0.8), texts=6, context=90, length=20, batch=4)


@pytest.fixture(scope="module")
def stream(byte_tokenizer):
    from solm.evaluation.texts import documents

    return stream_of(documents("pydoc:heldout")[:2], byte_tokenizer, "docs")


@pytest.fixture(scope="module")
def whole(byte_tokenizer, stream):
    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as lm:
        return evaluate(under_values(lm, SPARSITY), [stream], SETTINGS)


def test_arms_are_matched_in_budget_and_the_dense_arm_is_the_stock_model(value_lm, stream, whole):
    result = whole
    arms = ["policy", "uniform"]
    assert [(p.arm, p.budget) for p in result.points] == [("dense", 1.0)] + [
        (arm, budget) for budget in SETTINGS.budgets for arm in arms
    ]
    for budget in SETTINGS.budgets:
        policy = result.arm("policy", budget)
        for arm in arms[1:]:
            point = result.arm(arm, budget)
            assert point.axes == pytest.approx(policy.axes, abs=0.9 / 20)
            assert point.difference.value == pytest.approx(policy.nats - point.nats)
            assert point.difference.low <= point.difference.value <= point.difference.high
            assert point.tokens == 120
    windows = stream.spaced(6, 111, torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock = torch.log_softmax(value_lm.model(windows).logits[:, 90:-1], -1)
    nats = -stock.gather(-1, windows[:, 91:, None]).mean()
    dense = result.points[0]
    assert dense.nats == pytest.approx(float(nats), abs=1e-4)
    assert dense.perplexity == pytest.approx(np.exp(dense.nats))
    assert dense.cost == pytest.approx({"nominal": 1, "bytes": 1})


def test_a_random_schedule_spends_what_the_static_one_does_in_another_order(value_lm, stream):
    space = value_lm.space
    rivals = {"random": random(BaselineRequest(value_lm, space)), "static": Arm(static(space, value_lm.sparsity))}
    found = evaluate(value_lm, [stream], SETTINGS, rivals=rivals)
    assert evaluate(value_lm, [stream], SETTINGS, rivals=rivals).points == found.points
    for budget in SETTINGS.budgets:
        shuffled, plain = found.arm("random", budget), found.arm("static", budget)
        assert shuffled.axes == pytest.approx(plain.axes, abs=0.02)
        assert shuffled.nats != plain.nats
        assert shuffled.difference is not None


def test_results_do_not_depend_on_an_interruption(value_lm, stream, whole, tmp_path):
    partial = tmp_path / "partial.json"

    def stop(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(value_lm, [stream], SETTINGS, partial=partial, progress=stop)
    assert len(json.loads(partial.read_text())["parts"]) == 1
    seen = []
    resumed = evaluate(value_lm, [stream], SETTINGS, partial=partial, progress=lambda done, total: seen.append(done))
    assert resumed.points == whole.points
    assert partial.exists()  # until the result is written


def test_arms_are_charged_by_their_own_sparsity_and_policy(tiny_lm, stream):
    """An arm that reads half of the weights, and one that reads a network beside all of them."""

    class Heavy(Dense):
        size = 10**6

    space, dense, (context, length) = ActionSpace(bits=(4, 16)), torch.ones(3, dtype=torch.float64), (60, 8)
    rivals = {"nested": Arm(Static(space), SparsityConfig.preset("nested")), "heavy": Arm(Heavy(space))}
    small = EvaluationSettings(budgets=(0.75,), texts=1, context=context, length=length)
    found = evaluate(tiny_lm, [stream], small, space, rivals=rivals)
    nested, heavy = (found.arm(name, 0.75) for name in ("nested", "heavy"))
    kv_length = context + 1 + np.arange(length)
    for point, sparsity, extra in ((nested, SparsityConfig.preset("nested"), 0), (heavy, tiny_lm.sparsity, Heavy.size)):
        shares = dense.clone()
        shares[2] = point.axes["bits"]
        expected = relative_bytes(shares.expand(length, 3).numpy(), kv_length, tiny_lm.shapes, sparsity, extra).mean()
        assert point.cost["bytes"] == pytest.approx(float(expected)), point.arm
    assert nested.cost["bytes"] < 0.9 < 1.1 < heavy.cost["bytes"]
    assert found.arm("uniform", 0.75).cost["bytes"] == pytest.approx(1), "activation bits change nothing that is read"


def test_divergences_are_paired_like_losses(value_lm, stream, whole):
    """From the dense arm; `tests/unit/backends/test_divergences.py` has what each of them is."""
    assert whole.points[0].divergence == 0
    for budget in SETTINGS.budgets:
        policy = whole.arm("policy", budget)
        assert policy.divergence > 1e-5
        point = whole.arm("uniform", budget)
        found = point.divergence_difference
        assert found.value == pytest.approx(policy.divergence - point.divergence)
        assert found.low <= found.value <= found.high
    small = SETTINGS.model_copy(update={"texts": 2})
    dense = evaluate(value_lm, [stream], small, rivals={"again": Arm(Dense(value_lm.space))})
    assert dense.arm("again", 0.6).divergence == pytest.approx(0, abs=1e-6)


def test_a_partial_file_of_a_rival_with_other_weights_or_rules_is_not_continued(value_lm, stream, tmp_path):
    partial, keys = tmp_path / "partial.json", set()
    small = EvaluationSettings(budgets=(0.8,), texts=1, context=60, length=8)
    first, second = (TrainedPolicy(value_lm.trained.config, network(seed=seed)).policy() for seed in (0, 1))
    for rival in (first, second, Arm(second, value_lm.sparsity.exact)):
        evaluate(value_lm, [stream], small, partial=partial, rivals={"rival": rival})
        keys.add(json.loads(partial.read_text())["key"])
    assert len(keys) == 3


@pytest.mark.parametrize("content", ["{", '{"key": 1, "parts": {}}'])
def test_a_foreign_or_broken_partial_file_is_ignored(value_lm, stream, tmp_path, content):
    partial = tmp_path / "partial.json"
    partial.write_text(content)
    small = SETTINGS.model_copy(update={"texts": 2})
    assert evaluate(value_lm, [stream], small, partial=partial).points == evaluate(value_lm, [stream], small).points


def test_baselines_alone_without_a_policy(tiny_lm, stream):
    tiny_lm.sparsity = SparsityConfig(window=32, page_size=8)
    settings = SETTINGS.model_copy(update={"budgets": (0.9,)})
    result = evaluate(tiny_lm, [stream], settings, ActionSpace(mlp=(0.5, 1.0)))
    assert {point.arm for point in result.points} == {"dense", "uniform"}
    assert result.arm("uniform", 0.9).axes == pytest.approx({"attention": 1, "mlp": 0.7, "bits": 1}, abs=0.0126)
    assert all(point.difference is None for point in result.points)


def test_result_file_round_trips_and_is_shown(whole):
    result = whole
    again = EvaluationResult.model_validate_json(result.model_dump_json())
    assert again == result
    assert show.table(result).row_count == len(result.points)
    lines = show.verdict(result)
    assert len(lines) == 2
    for line in lines:
        assert "beats" in line or "loses" in line or "noise" in line


def test_a_page_stands_alone_and_escapes_what_a_result_says(whole):
    named = whole.model_copy(update={"settings": whole.settings | {"model": "<model>"}})
    page = show.page([("<name>", named)])
    point = whole.arm("uniform", 0.6)
    for words in ("&lt;name&gt;", "&lt;model&gt;", f"[{point.divergence_difference.low:+.4f}, ", f"{point.nats:.4f}"):
        assert words in page
    assert not [words for words in ("<name>", "<model>", "http", "<script") if words in page]


def test_verdict_says_plainly_when_the_policy_loses(whole):
    result = whole.model_copy(deep=True)
    point = result.arm("uniform", 0.6)
    point.difference = point.difference.model_copy(update={"value": 0.2, "low": 0.1, "high": 0.3})
    assert "the policy loses to uniform" in show.verdict(result)[0]


def test_nothing_is_judged_over_few_texts_and_a_missed_budget_is_told(whole):
    few = whole.model_copy(update={"settings": whole.settings | {"texts": 2}})
    assert all("too few texts to judge (2" in line and "beats" not in line for line in show.verdict(few))
    missed = whole.model_copy(deep=True)
    missed.arm("policy", 0.6).realised = 0.981
    said = show.verdict(missed)
    assert "0.60: the budget was missed: the policy, and arms matched to it, spent 0.981; " in said[0]
    assert "missed" not in said[1]


def test_budgets_in_time_are_met_and_arms_take_equal_milliseconds(tiny_lm, stream):
    lm = under_values(tiny_lm, SparsityConfig(page_size=8, window=32))
    timed = SETTINGS.model_copy(update={"budgets": (0.8, 0.9), "currency": "time", "length": 40})
    with pytest.raises(BudgetError, match="needs step timings"):
        evaluate(lm, [stream], timed)
    lm = under_values(tiny_lm, lm.sparsity)
    lm.timings = made_timings()
    result = evaluate(lm, [stream], timed)
    assert result.points[0].step_ms == pytest.approx(10)
    for budget in timed.budgets:
        policy, uniform, dense = (result.arm(name, budget) for name in ("policy", "uniform", "dense"))
        assert policy.step_ms == pytest.approx(10 * budget, rel=0.02)
        assert uniform.step_ms == pytest.approx(policy.step_ms, rel=0.02)
        assert dense.difference.value == pytest.approx(policy.nats - result.points[0].nats)
    assert {point.arm for point in result.points} == {"dense", "policy", "uniform"}
    assert "share of the dense step's time 0.80: " in show.verdict(result)[0]
    table = show.table(result)
    assert table.row_count == len(result.points)
    spent = dict(zip(table.columns[1]._cells, table.columns[2]._cells, strict=True))
    assert float(spent["policy"]) == pytest.approx(0.9, abs=0.02), "in the currency of the budgets"
    assert EvaluationResult.model_validate_json(result.model_dump_json()) == result
