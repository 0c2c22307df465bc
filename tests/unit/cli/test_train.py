"""`solm train`: which settings a run gets."""

import json

import pytest
from typer.testing import CliRunner

from helpers.policies import EVEN, profile_of
from helpers.texts import FOX
from solm.cli.main import app
from solm.core.sparsity import SparsityConfig
from solm.training.config import ValueTrainConfig


@pytest.mark.parametrize("place", ["nowhere", "--sparsity", "--config", "--out"])
def test_an_allocation_changes_nothing_else_about_the_sparsity(place, tiny_folder, tmp_path, monkeypatch):
    text, layers, out = tmp_path / "text.txt", tmp_path / "layers.json", tmp_path / "run"
    text.write_text(FOX)
    layers.write_text(json.dumps({"allocation": {"attention": [EVEN] * 2, "mlp": [EVEN] * 2}}))
    run = {"model": str(tiny_folder), "data": str(text), "context": 120, "level_cost_context": 120, "layer": 1}
    given: list[str] = []
    if place == "--sparsity":
        given = ["--sparsity", "cpu"]
    if place == "--config":
        run["sparsity"] = "cpu"
    if place == "--out":
        stored = ValueTrainConfig.build({**run, "sparsity": "cpu"}, "test")
        out.mkdir()
        (out / "config.json").write_text(stored.model_dump_json())
    else:
        (tmp_path / "run.yaml").write_text(json.dumps(run))
        given += ["--config", str(tmp_path / "run.yaml")]
    seen = []
    monkeypatch.setattr("solm.training.values.train_values", lambda lm, config, *rest: seen.append(config))
    done = CliRunner().invoke(app, ["train", *given, "--out", str(out), "--allocation", str(layers)])
    assert done.exit_code == 0, (done.output, done.exception)
    wanted = SparsityConfig.preset("default" if place == "nowhere" else "cpu")
    assert [config.sparsity for config in seen] == [wanted.under(profile_of(0, 0))]
