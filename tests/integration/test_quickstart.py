"""The main job on a tiny model, end to end."""

import shutil

import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import under_values
from helpers.timings import as_measured, made_clock, made_curve
from solm.cli import quickstart
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import TrainedPolicy


@pytest.fixture
def small(tiny_folder, tmp_path, monkeypatch):
    """The quickstart of a tiny model, for which a policy of random weights ships."""
    sparsity = SparsityConfig.preset("cpu")
    with solm.attach(tiny_model("llama", torch.float32)) as lm:
        trained = under_values(lm, sparsity).trained
        curve = made_curve()
    TrainedPolicy(trained.config, trained.network, curve).save_pretrained(tmp_path / "shipped")
    (tmp_path / "text.txt").write_text("Seventeen fish swim past the quay and come back in the evening. " * 200)
    changes = {
        "MODEL": str(tiny_folder), "SHIPPED": str(tmp_path / "shipped"), "DATA": str(tmp_path / "text.txt"),
        "CONTEXT": 150, "BUDGETS": (0.95, 0.9), "TOKENS": 8, "ROUNDS": 1,
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(quickstart, name, value)
    monkeypatch.setattr("solm.fit.costs.measure_clock", as_measured)

    def timed(lm, progress):
        return made_clock(model=lm.name, backend=lm.backend.name)

    monkeypatch.setattr("solm.runtime.language_model.measure_clock", timed)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_quickstart_decodes_fits_compares_and_goes_on(small, tmp_path):
    stages: list[str] = []

    def progress(stage, done, total):
        stages.append(stage)

    speeds = quickstart.decode(progress)
    assert [one["budget"] for one in speeds] == [None, 0.95, 0.9]
    assert speeds[0]["ms_per_token"] > 0
    result = quickstart.fitted(tmp_path / "fit", 0.02, progress)
    assert quickstart.answered(str(tmp_path / "fit" / "policy"), progress)["text"]
    assert (tmp_path / "fit" / "report.html").is_file()
    assert "fit: samples" in stages

    stages.clear()
    assert quickstart.fitted(tmp_path / "fit", 0.02, progress) == result
    assert not [stage for stage in stages if stage.startswith("fit: ")], "a finished fit is reused"
    finished = quickstart.quickstart(tmp_path, 0.02)
    assert finished.content["policy"] == str(tmp_path / "fit" / "policy")
    assert finished.content["speeds"][0]["bytes"] == 1
