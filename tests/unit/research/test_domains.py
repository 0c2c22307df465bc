"""Distribution shift: per source a comparison, an adherence and a distance from training; resumable."""

import json

import numpy as np
import pytest
import torch

from helpers.texts import FISH as TEXT
from solm.core.actions import AXES
from solm.core.errors import DataError, SolmError
from solm.data.windows import stream_of
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.research.domains import ShiftResult, divergence, observed, plot, shift

SETTINGS = EvaluationSettings(budgets=(0.6, 0.8), sequences=4, context=60, length=20, trials=1, examples=0)


def streams(tokenizer):
    digits = "".join(f"{number * 7919 % 10007} " for number in range(600))
    return [stream_of([TEXT], tokenizer, "fish.txt"), stream_of([digits], tokenizer, "digits.txt")]


def test_divergence_is_zero_at_home_and_grows_with_distance():
    rng = np.random.default_rng(0)
    known = rng.gamma(4, 0.25, 4000)
    assert divergence(known, known) == pytest.approx(0, abs=1e-12)
    assert divergence(rng.gamma(4, 0.25, 4000), known) < 0.01
    near, far = divergence(known * 1.2, known), divergence(known * 2, known)
    assert 0.01 < near < far
    # A known case: everything in the highest tenth costs log 10, but for the half counts.
    assert divergence(np.full(10_000, 99.0), known) == pytest.approx(np.log(10), abs=0.02)


def test_every_source_is_compared_by_itself(value_lm, byte_tokenizer, tmp_path):
    network = value_lm.trained.network
    network.calibration.copy_(1 + 0.1 * torch.randn(network.calibration.shape))
    sources = streams(byte_tokenizer)
    result = shift(value_lm, sources, SETTINGS)
    assert [source.name for source in result.sources] == ["fish.txt", "digits.txt"]
    alone = evaluate(value_lm, [sources[1]], SETTINGS)
    for point in result.sources[1].points:
        assert point.policy == alone.arm("policy", point.budget).nats
        assert point.difference == alone.arm("static", point.budget).difference
        assert point.gap == max(abs(point.realised[axis] - point.requested[axis]) for axis in AXES)
    said = observed(value_lm, value_lm.trained.policy(), sources[0].tokens[:324].view(4, 81), SETTINGS)
    assert said.shape == (4 * 2 * 20, 3)
    assert (said > 0).all()
    assert ShiftResult.model_validate_json(result.model_dump_json()) == result
    assert plot(result).startswith(b"\x89PNG")
    assert b"<svg" in plot(result, "svg")

    partial = tmp_path / "partial.json"

    def stop(source, done, total):
        if source == "digits.txt":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shift(value_lm, sources, SETTINGS, partial, stop)
    assert [source["name"] for source in json.loads(partial.read_text())["sources"]] == ["fish.txt"]
    told = []
    again = shift(value_lm, sources, SETTINGS, partial, lambda source, done, total: told.append(source))
    assert again.sources == result.sources
    assert set(told) == {"digits.txt"}
    assert not partial.exists()


def test_missing_inputs_are_reported_before_the_work(value_lm, tiny_lm, byte_tokenizer):
    short = stream_of(["One fish."], byte_tokenizer, "short.txt")
    with pytest.raises(DataError, match=r"short.txt holds 10 tokens"):
        shift(value_lm, [streams(byte_tokenizer)[0], short], SETTINGS)
    with pytest.raises(SolmError, match="--method values"):
        shift(tiny_lm, streams(byte_tokenizer), SETTINGS)
