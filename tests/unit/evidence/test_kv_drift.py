"""A burst's damage: nothing before it ends is dense, what cannot last does not."""

import pytest

from evidence.studies.kv_drift import Options, lines, measure, run
from helpers.texts import FISH
from solm.core.actions import Action
from solm.core.errors import SolmError


def test_a_burst_costs_while_it_lasts_and_less_after_it(tiny_lm, tmp_path):
    (tmp_path / "fish.txt").write_text(FISH)
    sizes = {"burst": 8, "stretch": 8, "texts": 6, "context": 90, "length": 40}
    options = Options(data=str(tmp_path / "fish.txt"), **sizes)
    found = measure(tiny_lm, Action(0.1, 0.1, 3), options, None)
    during, after = found.results["during"], found.results["after"]
    assert set(during) == {"all", "attention", "mlp", "bits"}
    assert abs(during["all"]["value"]) > 0
    assert [len(points) for points in after.values()] == [4] * 4
    assert any(abs(point["value"]) > 1e-6 for point in after["mlp"])
    assert len(lines(found)) == 8
    untouched = measure(tiny_lm, Action(1.0, 1.0, 16), options, None).results
    assert untouched["during"]["all"]["value"] == untouched["after"]["all"][0]["value"] == 0
    with pytest.raises(SolmError, match="--burst 40 must leave 8 of 40"):
        run(options.model_copy(update={"burst": 40}), None)
