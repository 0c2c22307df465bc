"""Sweeps that are interrupted go on; results that do not belong together are refused."""

import json

import pytest
import torch

from helpers.commands import points
from helpers.models import tiny_model
from helpers.policies import SPARSITY, network, under_values
from helpers.texts import FISH
from solm.core.errors import DamagedFileError, RunMismatchError, SolmError
from solm.evaluation.report.combined import render
from solm.evaluation.report.read import read_results
from solm.evaluation.sweep import MANIFEST, RESULTS, read_config, sweep
from solm.policies.artifact import TrainedPolicy


def test_a_sweep_goes_on_and_equals_one_that_was_never_stopped(sweep_config, tmp_path):
    sweep(sweep_config, tmp_path / "whole")

    def stop(job: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(sweep_config, tmp_path / "parts", stop)
    assert len(points(tmp_path / "parts")) == 1
    kept = next((tmp_path / "parts" / "jobs").glob("*.json")).stat().st_mtime_ns
    sweep(sweep_config, tmp_path / "parts")
    assert points(tmp_path / "parts") == points(tmp_path / "whole")
    assert kept in [path.stat().st_mtime_ns for path in (tmp_path / "parts" / "jobs").glob("*.json")]
    with pytest.raises(RunMismatchError, match="another sweep"):
        sweep(sweep_config.model_copy(update={"seed": 1}), tmp_path / "parts")


@pytest.mark.parametrize("what", ["model", "policy", "text"])
def test_a_sweep_does_not_go_on_where_what_it_names_has_changed(what, sweep_config, tiny_folder, tmp_path, tiny_lm):
    under_values(tiny_lm, SPARSITY).trained.save_pretrained(tmp_path / "policy")
    config = sweep_config.model_copy(update={"policies": (str(tmp_path / "policy"),), "spaces": (None,)})

    def stop(job: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(config, tmp_path / "out", stop)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    if what == "text":
        (tmp_path / "text.txt").write_text(FISH)
    elif what == "policy":
        other = network(seed=1)
        TrainedPolicy(under_values(tiny_lm, SPARSITY).trained.config, other).save_pretrained(tmp_path / "policy")
    else:
        tiny_model("llama", torch.float32, intermediate_size=128).save_pretrained(tiny_folder)
    with pytest.raises(RunMismatchError, match=f"holds a sweep from before the {what} .* changed; choose another"):
        sweep(config, tmp_path / "out", stop)
    del manifest["made_of"]  # as older versions wrote it
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(KeyboardInterrupt):
        sweep(config, tmp_path / "out", stop)


def test_a_page_shows_every_result_and_stands_alone(sweep_config, tmp_path):
    sweep(sweep_config, tmp_path / "out")
    page = render(read_results([tmp_path / "out" / RESULTS]))
    assert page.count("<h2>results, line") == 2
    assert page.count(f"{sweep_config.length} tokens after {sweep_config.context} dense ones") == 2, "each has its own"
    assert "uniform" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_results_that_do_not_belong_together_are_refused(sweep_config, tmp_path):
    first, *_ = sweep(sweep_config, tmp_path / "out")
    content = json.loads(first.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, "data_fingerprint": "else"}))
    with pytest.raises(SolmError, match="differ in text"):
        read_results([first, other])
    other.write_text(json.dumps({**content, "schema_version": 7}))
    with pytest.raises(DamagedFileError, match="schema version 7"):
        read_results([other])
    other.write_text(first.read_text()[:300])
    with pytest.raises(DamagedFileError, match="half-written"):
        read_results([other])


def test_a_bad_configuration_is_one_line(tmp_path):
    for values, words in (
        ({"data": ["a.txt"]}, "needs spaces"),
        ({"spaces": ["joint-8"]}, "nothing to do"),
        ({"spaces": ["joint-9"], "data": ["a"]}, "unknown action space"),
        ({"spaces": ["joint-8"], "data": ["a"], "budget": 3}, "budget"),
        ({"spaces": ["joint-8"], "data": ["a"], "budgets": []}, "budgets: .* at least 1 item"),
        ({"spaces": ["joint-8"], "data": ["a"], "budgets": [0.6, 0.6]}, "name one value twice"),
        ({"spaces": [], "data": ["a"]}, "spaces: .* at least 1 item"),
        ({"spaces": ["joint-8"], "data": ["a"], "models": []}, "models: .* at least 1 item"),
        ({"spaces": ["joint-8"], "data": ["a"], "policies": []}, "policies: .* at least 1 item"),
    ):
        with pytest.raises(SolmError, match=words):
            read_config(tmp_path / "sweep.yaml", values)
