"""Distribution shift: per source a comparison, an adherence and a distance from training; resumable."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.texts import FISH
from solm.core.actions import AXES
from solm.core.errors import DataError, SolmError
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.result import Record
from solm.research.domains import Options, divergence, lines, measure, observed, plot

SETTINGS = EvaluationSettings(budgets=(0.6, 0.8), texts=4, context=60, length=20, trials=1, examples=0)


def ignore(*progress) -> None:
    pass


def chosen(folder: Path) -> Options:
    """The study of two sources in `folder`, with `SETTINGS`."""
    digits = "".join(f"{number * 7919 % 10007} " for number in range(600))
    for name, text in (("fish.txt", FISH), ("digits.txt", digits)):
        (folder / name).write_text(text)
    return Options(
        policy="policy", data=f"{folder / 'fish.txt'},{folder / 'digits.txt'}", budgets=SETTINGS.budgets,
        texts=SETTINGS.texts, context=SETTINGS.context, length=SETTINGS.length,
    )  # fmt: skip


def test_divergence_is_zero_at_home_and_grows_with_distance():
    rng = np.random.default_rng(0)
    known = rng.gamma(4, 0.25, 4000)
    assert divergence(known, known) == pytest.approx(0, abs=1e-12)
    assert divergence(rng.gamma(4, 0.25, 4000), known) < 0.01
    near, far = divergence(known * 1.2, known), divergence(known * 2, known)
    assert 0.01 < near < far
    # A known case: everything in the highest tenth costs log 10, but for the half counts.
    assert divergence(np.full(10_000, 99.0), known) == pytest.approx(np.log(10), abs=0.02)


def test_every_source_is_compared_by_itself(value_lm, tmp_path):
    network = value_lm.trained.network
    seen = network.training_sensitivities
    seen.copy_(1 + 0.1 * torch.randn(seen.shape))
    options = chosen(tmp_path)
    found = measure(value_lm, options, None, ignore)
    sources = found.results["sources"]
    assert [source["name"] for source in sources] == list(options.data)
    streams = options.streams(value_lm)
    alone = evaluate(value_lm, [streams[1]], SETTINGS)
    for point in sources[1]["points"]:
        assert point["policy"] == alone.arm("policy", point["budget"]).nats
        assert point["difference"] == alone.arm("uniform", point["budget"]).difference.model_dump()
        assert point["gap"] == max(abs(point["realised"][axis] - point["requested"][axis]) for axis in AXES)
    windows = streams[0].tokens[:324].view(4, 81)
    said = observed(value_lm, value_lm.trained.policy(), windows, SETTINGS.context, SETTINGS.budgets)
    assert said.shape == (4 * 2 * 20, 3)
    assert (said > 0).all()
    assert Record.model_validate_json(found.model_dump_json()) == found
    assert plot(found, "png").startswith(b"\x89PNG")
    assert b"<svg" in plot(found, "svg")
    assert len(lines(found)) == 6

    partial = tmp_path / "partial.json"

    def stop(source, done, total):
        if source.endswith("digits.txt"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(value_lm, options, partial, stop)
    assert list(json.loads(partial.read_text())["parts"]) == [streams[0].fingerprint]
    told = []
    again = measure(value_lm, options, partial, lambda source, done, total: told.append(source))
    assert again.results == found.results
    assert {Path(source).name for source in told} == {"digits.txt"}
    assert partial.exists()  # until the result is written


def test_what_is_missing_is_told_before_the_work(value_lm, tiny_lm, tmp_path):
    options = chosen(tmp_path)
    (tmp_path / "short.txt").write_text("One fish.")
    short = options.model_copy(update={"data": (options.data[0], str(tmp_path / "short.txt"))})
    with pytest.raises(DataError, match=r"short.txt holds 10 tokens"):
        measure(value_lm, short, None, ignore)
    with pytest.raises(SolmError, match="--method values"):
        measure(tiny_lm, options, None, ignore)
