"""Studies of text: free running and long contexts on a tiny model."""

import pytest

from evidence.studies import free_running, long_context
from helpers.texts import FISH


@pytest.fixture
def text(tmp_path):
    (tmp_path / "fish.txt").write_text(FISH * 3)
    return str(tmp_path / "fish.txt")


def test_what_dense_steps_write_is_what_the_dense_model_predicts(value_lm, text, tmp_path):
    options = free_running.Options(
        data=text, texts=3, context=60, length=12, budgets="0.7", policy="p", backend="torch", baselines="uniform"
    )
    found = free_running.measure(value_lm, options, tmp_path / "partial")
    (point,) = found.results["points"]
    dense, policy, uniform = (point["arms"][name] for name in ("dense", "policy", "uniform"))
    assert dense["kl"] == pytest.approx(0, abs=1e-6)
    assert min(policy["kl"], uniform["kl"]) > 1e-5
    assert uniform["mlp"] == pytest.approx(policy["mlp"], abs=0.05)
    assert len(free_running.lines(found)) == 3
    assert free_running.measure(value_lm, options, tmp_path / "partial").results == found.results


def test_pages_that_are_read_are_counted_in_long_contexts(value_lm, text):
    options = long_context.Options(data=text, texts=1, contexts="100,150", length=32, policy="p", backend="torch")
    found = long_context.measure(value_lm, options, None)
    for arms in found.results["text"].values():
        assert arms["constant 1"]["minus_dense"]["value"] == 0
        assert arms["constant 0.2"]["share"] < arms["constant 0.5"]["share"] < 1
        for target in ("0.2", "0.3"):
            ours, constant = arms[f"policy {target}"]["share"], arms[f"constant as policy {target}"]["share"]
            assert constant == pytest.approx(ours, abs=0.05)
    assert long_context.lines(found)
